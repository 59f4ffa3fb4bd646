// Speaks TLS on 127.0.0.1 and passes the bytes on to a service that speaks none.
//   node dev/tls-proxy.mjs PORT UPSTREAM_PORT_FILE CERTIFICATE KEY
// The upstream's port is read from its file at every connection, so the service behind may stop,
// start again and move to another port; while it is down, connections are closed.
import { readFileSync } from "node:fs";
import { connect } from "node:net";
import { pipeline } from "node:stream";
import { createServer } from "node:tls";

const [port, upstreamPortFile, certificate, key] = process.argv.slice(2);

const server = createServer(
  { cert: readFileSync(certificate), key: readFileSync(key), ALPNProtocols: ["http/1.1"] },
  (client) => {
    const upstream = connect(Number(readFileSync(upstreamPortFile, "utf8")), "127.0.0.1");
    client.setNoDelay(true);
    upstream.setNoDelay(true);
    // Whichever side fails or ends, pipeline destroys both; the client sees a closed connection.
    pipeline(client, upstream, client, () => {});
  },
);
// A client that speaks no TLS, or doesn't trust the certificate, concerns no other client.
server.on("tlsClientError", () => {});
server.listen(Number(port), "127.0.0.1");
process.on("SIGTERM", () => process.exit(0));
