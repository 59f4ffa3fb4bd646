// The docs page and the stream in a real browser: node dev/browser.mjs URL TOKEN
//
// The docs must work without any other host. A browser's WebSocket can send no header, so the stream is
// opened with a ticket, which works once.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';

const [url, token] = process.argv.slice(2);
const require = createRequire(new URL('../.dev/node/', import.meta.url));
const { chromium } = require('playwright-core');

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
  ],
});
try {
  const page = await browser.newPage();
  const foreign = [];
  page.on('request', (request) => {
    const other = new URL(request.url());
    if (other.protocol.startsWith('http') && other.host !== new URL(url).host) foreign.push(request.url());
  });
  await page.goto(`${url}/`);
  assert.equal(new URL(page.url()).pathname, '/docs');
  await page.getByText('Record an event').first().waitFor({ timeout: 20000 });
  assert.deepEqual(foreign, [], 'the docs ask no other host');

  const frames = await page.evaluate(async (token) => {
    const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' };
    const answer = await fetch('/api/v1/logs/stream/ticket', { method: 'POST', headers });
    const { ticket } = await answer.json();
    const address = `${location.origin.replace('http', 'ws')}/api/v1/logs/stream?ticket=${ticket}`;
    const entry = await new Promise((resolve, reject) => {
      const socket = new WebSocket(address);
      socket.onmessage = async ({ data }) => {
        const frame = JSON.parse(data);
        if (frame.type === 'entry') {
          socket.close();
          resolve(frame);
        } else {
          // The stream is open: what is recorded now must come.
          const body = JSON.stringify({ action_type: 'VIEW', resource_type: 'page', resource_id: 'browser' });
          await fetch('/api/v1/logs', { method: 'POST', headers, body });
        }
      };
      socket.onerror = () => reject(new Error('the stream was refused'));
    });
    const again = await new Promise((resolve) => {
      const socket = new WebSocket(address);
      socket.onopen = () => resolve('opened');
      socket.onerror = () => resolve('refused');
    });
    return { entry, again };
  }, token);
  assert.equal(frames.entry.entry.resource_id, 'browser', JSON.stringify(frames.entry));
  assert.equal(frames.again, 'refused', 'a ticket works once');
  console.log('docs page and stream work in', browser.version());
} finally {
  await browser.close();
}
