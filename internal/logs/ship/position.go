package ship

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"escale.dev/escale/internal/logs"
)

// recordSize is the length of a position on disk: less than a sector, so that a
// power cut leaves the old one or the new one.
const recordSize = 256

// record is a position on disk, see docs/formats.md.
type record struct {
	Version int `json:"version"`
	logs.Position
}

// book keeps the position of a log in a file that is written in place by single
// writes: what was written outlives the engine; a power cut may bring back an older
// one, which repeats lines.
type book struct {
	f *os.File
}

// openBook opens the file and reads what it holds. One that holds nothing is the
// beginning; one that cannot be read, too, but nobody knows what was sent.
func openBook(path string) (*book, logs.Position, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, logs.Position{}, err
	}
	var b [recordSize]byte
	n, _ := f.ReadAt(b[:], 0) // a short file is judged by its content
	pos, err := parseRecord(b[:n])
	if err != nil {
		pos = logs.Position{}
		if n > 0 {
			pos.Base = -1
		}
	}
	return &book{f}, pos, nil
}

func parseRecord(b []byte) (logs.Position, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return logs.Position{}, err
	}
	if r.Version != 1 || r.Head == 0 || r.Offset < 0 || r.Lines < 0 {
		return logs.Position{}, errors.New("not a position")
	}
	return r.Position, nil
}

func (b *book) write(p logs.Position) error {
	line, err := json.Marshal(record{1, p})
	if err != nil {
		return err
	}
	if len(line) >= recordSize {
		return fmt.Errorf("position of %d bytes", len(line))
	}
	var buf [recordSize]byte
	n := copy(buf[:], line)
	for ; n < recordSize-1; n++ {
		buf[n] = ' '
	}
	buf[recordSize-1] = '\n'
	_, err = b.f.WriteAt(buf[:], 0)
	return err
}

func (b *book) close() { _ = b.f.Close() } // each write was whole
