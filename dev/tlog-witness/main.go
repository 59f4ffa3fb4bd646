// tlog-witness cosigns the checkpoints of the logs that it is told of: C2SP tlog-witness over HTTP, with the
// Ed25519 cosignatures of C2SP tlog-cosignature. It stands on Go's sumdb/note and sumdb/tlog, which share no
// code with the project.
//
//	tlog-witness NAME FOLDER ADDRESS VKEY...
//
// The folder has the witness's key, made at the first start, and of each log the last checkpoint that was
// cosigned. The first line that it prints is its vkey and its URL; then one for each request to add a
// checkpoint, with the status of the answer, the log's origin and the checkpoint's size where they are known.
package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	cosignatureType = 4
	maxProof        = 63
	maxBody         = 64 << 10
)

type witness struct {
	name   string
	folder string
	key    ed25519.PrivateKey
	logs   map[string][]note.Verifier
	// turn makes one step of reading the last checkpoint and keeping the next one.
	turn sync.Mutex
}

// answer is what add-checkpoint is answered with, and what is printed of it.
type answer struct {
	status      int
	contentType string
	body        string
	origin      string
	size        int64
}

func main() {
	if len(os.Args) < 5 {
		fmt.Fprintln(os.Stderr, "usage: tlog-witness NAME FOLDER ADDRESS VKEY...")
		os.Exit(2)
	}
	w, err := open(os.Args[1], os.Args[2], os.Args[4:])
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	public := w.public()
	vkey := fmt.Sprintf("%s+%08x+%s", w.name, w.KeyHash(), base64.StdEncoding.EncodeToString(public))
	fmt.Printf("%s http://%s\n", vkey, listener.Addr())
	http.HandleFunc("POST /add-checkpoint", w.addCheckpoint)
	http.HandleFunc("GET /{log}/checkpoint", w.checkpoint)
	log.Fatal(http.Serve(listener, nil))
}

func open(name, folder string, vkeys []string) (*witness, error) {
	w := &witness{name: name, folder: folder, logs: map[string][]note.Verifier{}}
	for _, vkey := range vkeys {
		key, err := note.NewVerifier(vkey)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", vkey, err)
		}
		w.logs[key.Name()] = append(w.logs[key.Name()], key)
	}
	path := filepath.Join(folder, "key")
	seed, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		seed = make([]byte, ed25519.SeedSize)
		_, err = rand.Read(seed)
		err = errors.Join(err, os.MkdirAll(folder, 0o700), os.WriteFile(path, seed, 0o600))
	}
	if err == nil && len(seed) != ed25519.SeedSize {
		err = fmt.Errorf("%s is no key", path)
	}
	if err != nil {
		return nil, err
	}
	w.key = ed25519.NewKeyFromSeed(seed)
	return w, nil
}

// public is the key as a vkey has it.
func (w *witness) public() []byte {
	return append([]byte{cosignatureType}, w.key.Public().(ed25519.PublicKey)...)
}

// Name, KeyHash and Sign make it a note.Signer.
func (w *witness) Name() string { return w.name }

func (w *witness) KeyHash() uint32 {
	digest := sha256.Sum256(append([]byte(w.name+"\n"), w.public()...))
	return binary.BigEndian.Uint32(digest[:])
}

func (w *witness) Sign(text []byte) ([]byte, error) {
	now := uint64(time.Now().Unix())
	signed := fmt.Sprintf("cosignature/v1\ntime %d\n%s", now, text)
	return append(binary.BigEndian.AppendUint64(nil, now), ed25519.Sign(w.key, []byte(signed))...), nil
}

func (w *witness) addCheckpoint(out http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(out, request.Body, maxBody))
	var tooLong *http.MaxBytesError
	if err != nil && !errors.As(err, &tooLong) {
		return // whoever asked is gone
	}
	given := answer{status: http.StatusBadRequest, body: "the body is too long\n"}
	if err == nil {
		given = w.add(string(body))
	}
	fmt.Println(given.status, given.origin, given.size)
	if given.contentType != "" {
		out.Header().Set("Content-Type", given.contentType)
	}
	out.WriteHeader(given.status)
	io.WriteString(out, given.body)
}

// add decides about a request in the order of the page: 404, 403, 400, 409, 422.
func (w *witness) add(body string) answer {
	given := answer{}
	refuse := func(status int, why string) answer {
		given.status, given.body = status, why+"\n"
		return given
	}
	head, signed, _ := strings.Cut(body, "\n\n")
	lines := strings.Split(head, "\n")
	number, isOld := strings.CutPrefix(lines[0], "old ")
	old, err := decimal(number)
	if !isOld || err != nil || len(lines) > 1+maxProof {
		return refuse(http.StatusBadRequest, "not an old size and a proof")
	}
	var proof tlog.TreeProof
	for _, line := range lines[1:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return refuse(http.StatusBadRequest, "not a hash in the proof")
		}
		proof = append(proof, hash)
	}
	given.origin, _, _ = strings.Cut(signed, "\n")
	keys := w.logs[given.origin]
	if len(keys) == 0 {
		return refuse(http.StatusNotFound, "an unknown log")
	}
	opened, err := note.Open([]byte(signed), note.VerifierList(keys...))
	var unverified *note.UnverifiedNoteError
	var invalid *note.InvalidSignatureError
	if errors.As(err, &unverified) || errors.As(err, &invalid) {
		return refuse(http.StatusForbidden, "not signed by the log")
	}
	var tree tlog.Tree
	if err == nil {
		tree, err = treeOf(opened.Text)
	}
	if err != nil || old > tree.N {
		return refuse(http.StatusBadRequest, "not a checkpoint of the old size or more")
	}
	given.size = tree.N

	w.turn.Lock()
	defer w.turn.Unlock()
	last, err := w.last(given.origin)
	if err != nil {
		return refuse(http.StatusInternalServerError, err.Error())
	}
	switch {
	case old != last.N:
		given.contentType = "text/x.tlog.size"
		return refuse(http.StatusConflict, strconv.FormatInt(last.N, 10))
	case tree.N == 0 && tree.Hash != tlog.Hash(sha256.Sum256(nil)), old == 0 && len(proof) > 0:
		return refuse(http.StatusUnprocessableEntity, "not what an empty tree has")
	case old > 0 && tlog.CheckTree(proof, tree.N, tree.Hash, last.N, last.Hash) != nil:
		return refuse(http.StatusUnprocessableEntity, "not shown to continue the last checkpoint")
	}
	// Signatures of others are none of its business.
	kept, err := note.Sign(&note.Note{Text: opened.Text, Sigs: opened.Sigs}, w)
	if err == nil {
		err = w.keep(given.origin, kept)
	}
	if err != nil {
		return refuse(http.StatusInternalServerError, err.Error())
	}
	// Its own line is the last one.
	given.status = http.StatusOK
	given.body = string(kept[strings.LastIndex(strings.TrimSuffix(string(kept), "\n"), "\n")+1:])
	return given
}

// checkpoint serves monitors.
func (w *witness) checkpoint(out http.ResponseWriter, request *http.Request) {
	for origin := range w.logs {
		if hashed(origin) == request.PathValue("log") {
			http.ServeFile(out, request, filepath.Join(w.folder, hashed(origin)))
			return
		}
	}
	http.NotFound(out, request)
}

func hashed(origin string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(origin))) }

// last is the tree of the last checkpoint of a log that was cosigned, the empty one before the first.
func (w *witness) last(origin string) (tlog.Tree, error) {
	text, err := os.ReadFile(filepath.Join(w.folder, hashed(origin)))
	if errors.Is(err, fs.ErrNotExist) {
		return tlog.Tree{}, nil
	}
	if err != nil {
		return tlog.Tree{}, err
	}
	return treeOf(string(text))
}

// keep puts a checkpoint in the last one's place, so that a crash leaves the one or the other, and the next
// one before anybody has its cosignature.
func (w *witness) keep(origin string, text []byte) error {
	next := filepath.Join(w.folder, "next")
	file, err := os.Create(next)
	if err != nil {
		return err
	}
	_, err = file.Write(text)
	if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Rename(next, filepath.Join(w.folder, hashed(origin))); err != nil {
		return err
	}
	folder, err := os.Open(w.folder)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// treeOf reads the second and third line of a checkpoint.
func treeOf(text string) (tlog.Tree, error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 4 {
		return tlog.Tree{}, errors.New("fewer than three lines")
	}
	size, err := decimal(lines[1])
	if err != nil {
		return tlog.Tree{}, err
	}
	root, err := tlog.ParseHash(lines[2])
	return tlog.Tree{N: size, Hash: root}, err
}

// decimal reads a size as the page writes it, without leading zeros.
func decimal(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err == nil && (n < 0 || strconv.FormatInt(n, 10) != text) {
		err = fmt.Errorf("size %q", text)
	}
	return n, err
}
