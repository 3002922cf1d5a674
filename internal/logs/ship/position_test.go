package ship

import (
	"testing"

	"escale.dev/escale/internal/logs"
)

// Whatever stands in the file: what is read is a place, and what was written is read.
func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"Head":1,"Offset":2,"Lines":3,"Base":4}`))
	f.Add([]byte("\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseRecord(b)
		if err != nil {
			return
		}
		if p.Head == 0 || p.Offset < 0 || p.Lines < 0 {
			t.Fatalf("%q: %+v", b, p)
		}
		path := t.TempDir() + "/p"
		k, _, err := openBook(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.write(p); err != nil {
			t.Fatal(err)
		}
		k.close()
		k, got, err := openBook(path)
		if err != nil || got != p {
			t.Fatalf("%+v came back as %+v, %v", p, got, err)
		}
		k.close()
	})
}

// The largest position fits its place.
func TestLargestPosition(t *testing.T) {
	const most = 1<<63 - 1
	k, _, err := openBook(t.TempDir() + "/p")
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	if err := k.write(logs.Position{Head: -most, Offset: most, Lines: most, Base: most}); err != nil {
		t.Error(err)
	}
}
