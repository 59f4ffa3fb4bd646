// tlog-check reads a folder of a transparency log and checks it with Go's sumdb/note and
// sumdb/tlog, which share no code with the project.
//
//	tlog-check FOLDER
//
// The folder has
//
//	keys                     the log's vkeys, a line each
//	witnesses                vkeys of cosigners, a line each (optional)
//	checkpoint               the newest signed checkpoint
//	checkpoints/*            earlier ones (optional)
//	tile/...                 tiles of hashes as C2SP tlog-tiles lays them out
//	tile/entries/...         tiles of entries (optional)
//	inclusion/*.tlog-proof   proofs of C2SP tlog-proof (optional)
//	consistency/OLD-NEW      hashes in base64, a line each, between the sizes of two checkpoints
//	                         (optional)
//
// It prints one line for each check. Exit status: 0 when all hold, 1 when one fails or something
// can't be read.
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	height    = 8
	fullWidth = 1 << height
)

// checkpoint is one whose signatures hold.
type checkpoint struct {
	origin string
	tlog.Tree
}

type checker struct {
	folder      string
	log         []note.Verifier
	witnesses   []note.Verifier
	checkpoints map[int64]checkpoint
	failed      bool
	count       int
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: tlog-check FOLDER")
		os.Exit(1)
	}
	c := &checker{folder: os.Args[1], checkpoints: map[int64]checkpoint{}}
	c.run()
	fmt.Printf("%d checks\n", c.count)
	if c.failed {
		os.Exit(1)
	}
}

// report prints the line of one check.
func (c *checker) report(what string, err error) {
	c.count++
	if err != nil {
		c.failed = true
		fmt.Printf("FAIL %s: %v\n", what, err)
		return
	}
	fmt.Printf("ok   %s\n", what)
}

func (c *checker) run() {
	var err error
	if c.log, err = c.vkeys("keys", note.NewVerifier); err != nil {
		c.report("keys", err)
		return
	}
	c.witnesses, err = c.vkeys("witnesses", newCosigner)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.report("witnesses", err)
		return
	}

	names := append([]string{"checkpoint"}, c.list("checkpoints")...)
	var newest checkpoint
	for _, name := range names {
		head, cosigned, err := c.open(name)
		what := fmt.Sprintf("checkpoint %s: size %d, cosigned by %d", name, head.N, cosigned)
		if before, ok := c.checkpoints[head.N]; err == nil && ok && before.Hash != head.Hash {
			err = fmt.Errorf("another root than a checkpoint of the same size")
		}
		c.report(what, err)
		if err != nil {
			continue
		}
		c.checkpoints[head.N] = head
		if head.N >= newest.N {
			newest = head
		}
	}
	sizes := make([]int64, 0, len(c.checkpoints))
	for size := range c.checkpoints {
		sizes = append(sizes, size)
	}
	sort.Slice(sizes, func(i, j int) bool { return sizes[i] < sizes[j] })
	for _, size := range sizes {
		c.tiles(c.checkpoints[size], newest)
	}
	if _, err := os.Stat(filepath.Join(c.folder, "tile", "entries")); err == nil {
		c.report(fmt.Sprintf("entries below %d", newest.N), c.entries(newest))
	}
	for _, name := range c.list("inclusion") {
		c.report("inclusion "+name, c.inclusion(name, newest))
	}
	for _, name := range c.list("consistency") {
		c.report("consistency "+name, c.consistency(name))
	}
}

// vkeys reads a file of verifier keys.
func (c *checker) vkeys(name string, read func(string) (note.Verifier, error)) ([]note.Verifier, error) {
	text, err := os.ReadFile(filepath.Join(c.folder, name))
	if err != nil {
		return nil, err
	}
	var keys []note.Verifier
	for _, line := range strings.Fields(string(text)) {
		key, err := read(line)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// list returns the files of a subfolder, as paths below the folder.
func (c *checker) list(subfolder string) []string {
	entries, err := os.ReadDir(filepath.Join(c.folder, subfolder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.report(subfolder, err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, filepath.Join(subfolder, entry.Name()))
	}
	return names
}

// open reads a signed checkpoint and tells how many of the witnesses cosigned it.
func (c *checker) open(name string) (checkpoint, int, error) {
	text, err := os.ReadFile(filepath.Join(c.folder, name))
	if err != nil {
		return checkpoint{}, 0, err
	}
	return c.openText(text)
}

func (c *checker) openText(text []byte) (checkpoint, int, error) {
	all := append(append([]note.Verifier{}, c.log...), c.witnesses...)
	opened, err := note.Open(text, note.VerifierList(all...))
	if err != nil {
		return checkpoint{}, 0, err
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) < 4 {
		return checkpoint{}, 0, errors.New("fewer than three lines")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || strconv.FormatInt(size, 10) != lines[1] || size < 0 {
		return checkpoint{}, 0, fmt.Errorf("size %q", lines[1])
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return checkpoint{}, 0, err
	}
	head := checkpoint{lines[0], tlog.Tree{N: size, Hash: root}}
	signed, cosigned := false, 0
	for _, signature := range opened.Sigs {
		for _, key := range c.log {
			ours := key.Name() == signature.Name && key.KeyHash() == signature.Hash
			signed = signed || ours && key.Name() == head.origin
		}
		for _, key := range c.witnesses {
			if key.Name() == signature.Name && key.KeyHash() == signature.Hash {
				cosigned++
			}
		}
	}
	if !signed {
		return head, cosigned, fmt.Errorf("no key named %s signed", head.origin)
	}
	return head, cosigned, nil
}

// reader returns a reader of hashes that authenticates each tile against the head.
func (c *checker) reader(head checkpoint) tlog.HashReader {
	return tlog.TileHashReader(head.Tree, tileFolder(c.folder))
}

// tiles checks that a checkpoint's tiles are those of its root, and that the newest tree continues
// it.
func (c *checker) tiles(head, newest checkpoint) {
	if head.N == 0 {
		empty := tlog.Hash(sha256.Sum256(nil))
		var err error
		if head.Hash != empty {
			err = errors.New("not the root of the empty tree")
		}
		c.report("the empty tree", err)
		return
	}
	root, err := tlog.TreeHash(head.N, c.reader(head))
	if err == nil && root != head.Hash {
		err = errors.New("the tiles have another root")
	}
	// Every tile that a tree of this size has, by reading a hash of each.
	for _, tile := range tlog.NewTiles(height, 0, head.N) {
		if err != nil {
			break
		}
		last := tile.N<<height + int64(tile.W) - 1
		_, err = c.reader(head).ReadHashes([]int64{tlog.StoredHashIndex(height*tile.L, last)})
	}
	c.report(fmt.Sprintf("tiles at size %d", head.N), err)

	proof, err := tlog.ProveTree(newest.N, head.N, c.reader(newest))
	if err == nil {
		err = tlog.CheckTree(proof, newest.N, newest.Hash, head.N, head.Hash)
	}
	c.report(fmt.Sprintf("tree of %d continues that of %d", newest.N, head.N), err)
}

// entries checks every entry against its leaf hash in the authenticated tiles.
func (c *checker) entries(head checkpoint) error {
	reader := c.reader(head)
	for start := int64(0); start < head.N; start += fullWidth {
		width := min(head.N-start, fullWidth)
		bundle, err := tileFolder(c.folder).bundle(start/fullWidth, int(width))
		if err != nil {
			return err
		}
		indexes := make([]int64, width)
		for i := range indexes {
			indexes[i] = tlog.StoredHashIndex(0, start+int64(i))
		}
		hashes, err := reader.ReadHashes(indexes)
		if err != nil {
			return err
		}
		for i, entry := range bundle {
			if tlog.RecordHash(entry) != hashes[i] {
				return fmt.Errorf("entry %d has another hash than its leaf", start+int64(i))
			}
		}
	}
	return nil
}

// inclusion checks a proof for the leaf that the newest tree has at its position.
func (c *checker) inclusion(name string, newest checkpoint) error {
	text, err := os.ReadFile(filepath.Join(c.folder, name))
	if err != nil {
		return err
	}
	head, signed, found := bytes.Cut(text, []byte("\n\n"))
	if !found {
		return errors.New("no blank line")
	}
	lines := strings.Split(string(head), "\n")
	if lines[0] != "c2sp.org/tlog-proof@v1" {
		return errors.New("not a tlog-proof")
	}
	lines = lines[1:]
	if len(lines) > 0 && strings.HasPrefix(lines[0], "extra ") {
		lines = lines[1:]
	}
	if len(lines) == 0 || !strings.HasPrefix(lines[0], "index ") {
		return errors.New("no index")
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[0], "index "), 10, 64)
	if err != nil {
		return err
	}
	proof, err := parseHashes(lines[1:])
	if err != nil {
		return err
	}
	tree, _, err := c.openText(signed)
	if err != nil {
		return err
	}
	leaf, err := c.reader(newest).ReadHashes([]int64{tlog.StoredHashIndex(0, index)})
	if err != nil {
		return err
	}
	return tlog.CheckRecord(proof, tree.N, tree.Hash, index, leaf[0])
}

// consistency checks a proof between two of the checkpoints, which its name tells.
func (c *checker) consistency(name string) error {
	text, err := os.ReadFile(filepath.Join(c.folder, name))
	if err != nil {
		return err
	}
	proof, err := parseHashes(strings.Fields(string(text)))
	if err != nil {
		return err
	}
	var old, new int64
	if _, err := fmt.Sscanf(filepath.Base(name), "%d-%d", &old, &new); err != nil {
		return err
	}
	before, ok := c.checkpoints[old]
	after, too := c.checkpoints[new]
	if !ok || !too {
		return errors.New("no checkpoints of these sizes")
	}
	return tlog.CheckTree(proof, new, after.Hash, old, before.Hash)
}

func parseHashes(lines []string) ([]tlog.Hash, error) {
	var hashes []tlog.Hash
	for _, line := range lines {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return nil, err
		}
		hashes = append(hashes, hash)
	}
	return hashes, nil
}

// tileFolder is a tlog.TileReader of files in the layout of C2SP tlog-tiles.
type tileFolder string

func (f tileFolder) Height() int { return height }

func (f tileFolder) SaveTiles([]tlog.Tile, [][]byte) {}

func (f tileFolder) ReadTiles(tiles []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range tiles {
		data, err := os.ReadFile(f.path(tile))
		if errors.Is(err, fs.ErrNotExist) && tile.W < fullWidth {
			// A log may serve the full tile alone, once there is one.
			full := tile
			full.W = fullWidth
			data, err = os.ReadFile(f.path(full))
			if len(data) == fullWidth*tlog.HashSize {
				data = data[:tile.W*tlog.HashSize]
			}
		}
		if err != nil {
			return nil, err
		}
		if len(data) != tile.W*tlog.HashSize {
			return nil, fmt.Errorf("%s has %d bytes", f.path(tile), len(data))
		}
		all = append(all, data)
	}
	return all, nil
}

// path leaves out the tile's height, which C2SP's layout fixes.
func (f tileFolder) path(tile tlog.Tile) string {
	path := strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/", height), "tile/", 1)
	path = strings.Replace(path, "tile/data/", "tile/entries/", 1)
	return filepath.Join(string(f), filepath.FromSlash(path))
}

// bundle reads a tile of entries.
func (f tileFolder) bundle(index int64, width int) ([][]byte, error) {
	name := f.path(tlog.Tile{H: height, L: -1, N: index, W: width})
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var entries [][]byte
	for len(data) > 0 {
		if len(data) < 2 {
			return nil, fmt.Errorf("%s ends within a length", name)
		}
		length := int(binary.BigEndian.Uint16(data))
		if len(data) < 2+length {
			return nil, fmt.Errorf("%s ends within an entry", name)
		}
		entries = append(entries, data[2:2+length])
		data = data[2+length:]
	}
	if len(entries) != width {
		return nil, fmt.Errorf("%s has %d entries", name, len(entries))
	}
	return entries, nil
}

// cosigner verifies the Ed25519 cosignatures of C2SP tlog-cosignature.
type cosigner struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

const cosignatureType = 4

func newCosigner(vkey string) (note.Verifier, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return nil, errors.New("not a vkey")
	}
	key, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(key) != 1+ed25519.PublicKeySize || key[0] != cosignatureType {
		return nil, errors.New("not a cosigner's vkey")
	}
	digest := sha256.Sum256(append([]byte(parts[0]+"\n"), key...))
	hash := binary.BigEndian.Uint32(digest[:])
	if fmt.Sprintf("%08x", hash) != parts[1] {
		return nil, errors.New("another key id")
	}
	return &cosigner{parts[0], hash, key[1:]}, nil
}

func (c *cosigner) Name() string    { return c.name }
func (c *cosigner) KeyHash() uint32 { return c.hash }

func (c *cosigner) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	time := binary.BigEndian.Uint64(sig)
	signed := fmt.Sprintf("cosignature/v1\ntime %d\n%s", time, msg)
	return ed25519.Verify(c.key, []byte(signed), sig[8:])
}
