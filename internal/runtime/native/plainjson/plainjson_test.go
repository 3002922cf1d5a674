package plainjson

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
)

// What is read is what encoding/json reads.
func FuzzAny(f *testing.F) {
	for _, text := range []string{`{"a":[1,2.5e3,"\u00e9\ud83d\ude00\/",null,true,false,{}]}`, `[[],[[]],{"a":{}}]`, `"\ud800"`, "\"\xff\"", `-0`, `1e400`, `[1,]`, `{"a":1,"a":[2]}`, ` `} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var want, got any
		werr, err := json.Unmarshal(text, &want), Read(text, &got, Any)
		if (werr == nil) != (err == nil) || err == nil && !reflect.DeepEqual(want, got) {
			t.Fatalf("%q: %#v, %v; encoding/json: %#v, %v", text, got, err, want, werr)
		}
	})
}

// What is written is what encoding/json writes, on one line and on several.
func FuzzWrite(f *testing.F) {
	for _, text := range []string{"", "a", `<b>&"\`, "\u2028\u2029\ufffd", "\x00\b\f\n\r\t\x1f\x7f", "\xff\xc3(\xed\xa0\x80é😀", `{"a":[1,{}]}`} {
		f.Add(text, "x")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		v := map[string][]string{a: {b, a}, b: nil, "c": {}}
		want, werr := json.Marshal(v)
		got, err := Write(&v, func(w *Writer, v *map[string][]string) {
			WriteMap(w, v, func(w *Writer, v *[]string) { WriteSlice(w, v, WriteText[string]) })
		})
		if werr != nil || err != nil || string(got) != string(want) {
			t.Fatalf("%s, %v; encoding/json: %s, %v", got, err, want, werr)
		}
		var lines bytes.Buffer
		if err := json.Indent(&lines, want, "", "  "); err != nil || lines.String() != string(Indent(got)) {
			t.Fatalf("%s\nencoding/json: %s, %v", Indent(got), lines.Bytes(), err)
		}
	})
}
