package wire

import (
	"bytes"
	"slices"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	var w Writer
	w.Begin(Config)
	w.Uint(TagRequest, 1<<63+5)
	w.Text(TagID, "abc")
	w.Text(TagBundle, "")
	w.Texts(TagArg, []string{"--x", "", "y"})
	w.Bool(TagTerminal, true)
	w.Bool(TagOpenStdin, false)
	w.Bytes(TagLog, []byte{0, 255})
	w.End()
	w.Begin(Start)
	w.End()
	b := w.Data()
	for cut := range len(b) {
		// Every prefix is either a whole first frame or a request for more.
		if m, n, err := Next(b[:cut]); err != nil || n != 0 && m.Type != Config {
			t.Fatalf("prefix of %d: %v %d %v", cut, m.Type, n, err)
		}
	}
	m, n, err := Next(b)
	if err != nil || m.Type != Config {
		t.Fatal(m, err)
	}
	if m.Uint(TagRequest) != 1<<63+5 || m.Text(TagID) != "abc" || m.Text(TagBundle) != "" ||
		!slices.Equal(m.Texts(TagArg), []string{"--x", "", "y"}) || !m.Bool(TagTerminal) ||
		m.Bool(TagOpenStdin) || !bytes.Equal(m.Bytes(TagLog), []byte{0, 255}) {
		t.Fatalf("fields changed: %+v", m)
	}
	m, n2, err := Next(b[n:])
	if err != nil || m.Type != Start || n+n2 != len(b) {
		t.Fatal(m, n2, err)
	}
}

// A message of a later version: unknown tags between known ones, numbers of
// another width.
func TestSkipsUnknown(t *testing.T) {
	frame := []byte{0, 0, 0, 0, byte(Signal),
		200, 0, 0, 0, 2, 'x', 'y',
		byte(TagNumber), 0, 0, 0, 1, 15,
		201, 0, 0, 0, 0,
		byte(TagProcess), 0, 0, 0, 1, 'e'}
	frame[3] = byte(len(frame) - 4)
	m, n, err := Next(frame)
	if err != nil || n != len(frame) || m.Uint(TagNumber) != 15 || m.Text(TagProcess) != "e" {
		t.Fatal(m, n, err)
	}
}

func TestRefuses(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty frame":     {0, 0, 0, 0},
		"huge":            {255, 255, 255, 255, 1},
		"too long":        {0, 64, 0, 1, 1},
		"torn head":       {0, 0, 0, 3, 1, 5, 0},
		"value too long":  {0, 0, 0, 7, 1, 5, 0, 0, 0, 2, 9},
		"value very long": {0, 0, 0, 6, 1, 5, 255, 255, 255, 255},
	} {
		if _, n, err := Next(b); err == nil || n != 0 {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzNext(f *testing.F) {
	var w Writer
	w.Begin(Exec)
	w.Uint(TagRequest, 7)
	w.Text(TagProcess, "id")
	w.End()
	f.Add(w.Data())
	f.Add([]byte{0, 0, 0, 6, 1, 5, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, n, err := Next(b)
		if n > len(b) || (err != nil && n != 0) {
			t.Fatal(n, err)
		}
		if n == 0 {
			return
		}
		// What was read can be written and is the same again.
		var w Writer
		w.Begin(m.Type)
		m.Each(func(tag Tag, v []byte) { w.Texts(tag, []string{string(v)}) })
		w.End()
		if !bytes.Equal(w.Data(), b[:n]) {
			t.Fatalf("%x became %x", b[:n], w.Data())
		}
		for tag := range 256 {
			m.Uint(Tag(tag))
			m.Texts(Tag(tag))
		}
	})
}
