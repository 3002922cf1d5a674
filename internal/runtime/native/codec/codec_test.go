package codec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"escale.dev/escale/internal/runtime/native/codec/gen/source"
	"escale.dev/escale/internal/runtime/native/plan"
	"escale.dev/escale/internal/runtime/native/record"
)

// reader and writer are functions of the package without their type.
func reader[T any](read func([]byte, *T) error) (reflect.Type, func([]byte, any) error) {
	return reflect.TypeFor[T](), func(b []byte, v any) error { return read(b, v.(*T)) }
}

func writer[T any](write func(*T) ([]byte, error)) (reflect.Type, func(any) ([]byte, error)) {
	return reflect.TypeFor[T](), func(v any) ([]byte, error) { return write(v.(*T)) }
}

// readers are all that the package has.
func readers(t testing.TB) map[reflect.Type]func([]byte, any) error {
	all := map[reflect.Type]func([]byte, any) error{}
	add := func(typ reflect.Type, read func([]byte, any) error) { all[typ] = read }
	add(reader[specs.Spec](ReadSpec))
	add(reader[specs.Process](ReadProcess))
	add(reader[specs.LinuxResources](ReadLinuxResources))
	add(reader[record.State](ReadRecordState))
	add(reader[plan.Plan](ReadPlan))
	for _, typ := range source.Read {
		if all[typ] == nil || len(all) != len(source.Read) {
			t.Fatalf("%s: name its function here", typ)
		}
	}
	return all
}

func writers(t testing.TB) map[reflect.Type]func(any) ([]byte, error) {
	all := map[reflect.Type]func(any) ([]byte, error){}
	add := func(typ reflect.Type, write func(any) ([]byte, error)) { all[typ] = write }
	add(writer[record.State](WriteRecordState))
	add(writer[record.Told](WriteRecordTold))
	add(writer[record.Line](WriteRecordLine))
	add(writer[plan.Plan](WritePlan))
	add(writer[specs.State](WriteState))
	add(writer[features.Features](WriteFeatures))
	for _, typ := range source.Written {
		if all[typ] == nil || len(all) != len(source.Written) {
			t.Fatalf("%s: name its function here", typ)
		}
	}
	add(writer[[]*record.Told](WriteList))
	add(writer[[]int](WritePids))
	return all
}

// filler gives values to all fields of a value.
type filler struct {
	rand  *rand.Rand
	every bool // none is left empty
	count int64
}

var words = []string{"", "a", "SCMP_ACT_ALLOW", `<q>&"\/`, "\u2028\u2029é😀\x7f", "\x00\b\f\n\r\t\x1f", "\xff\xc3(\xed\xa0\x80"}

func (f *filler) fill(v reflect.Value) {
	f.count++
	if !f.every && f.rand.IntN(4) == 0 {
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if v.SetInt(f.count); !f.every && f.rand.IntN(2) == 0 {
			v.SetInt(-1 << (v.Type().Bits() - 1))
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		if v.SetUint(uint64(f.count)); !f.every && f.rand.IntN(2) == 0 {
			v.SetUint(1<<v.Type().Bits() - 1)
		}
	case reflect.String:
		if v.SetString(fmt.Sprint("word", f.count)); !f.every {
			v.SetString(words[f.rand.IntN(len(words))])
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		f.fill(v.Elem())
	case reflect.Slice:
		n := 2
		if !f.every {
			n = f.rand.IntN(3)
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			f.fill(v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for _, key := range words[1:4] {
			e := reflect.New(v.Type().Elem()).Elem()
			f.fill(e)
			v.SetMapIndex(reflect.ValueOf(key).Convert(v.Type().Key()), e)
		}
	case reflect.Interface:
		v.Set(reflect.ValueOf(map[string]any{"a": []any{1.5, "x", nil, true, map[string]any{}}}))
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(f.rand.Int64N(1<<34), f.rand.Int64N(1e9)).In(time.FixedZone("", 60*f.rand.IntN(600)))))
			return
		}
		for i := range v.NumField() {
			f.fill(v.Field(i))
		}
	default:
		panic(v.Type().String())
	}
}

// filled are values of a type: an empty one, one with all its fields, and others.
func filled(typ reflect.Type) (list []reflect.Value) {
	for seed := range uint64(50) {
		v := reflect.New(typ)
		f := &filler{rand: rand.New(rand.NewPCG(seed, 1)), every: seed == 1}
		if seed > 0 {
			f.fill(v.Elem())
		}
		list = append(list, v)
	}
	return list
}

// same fails where a function does not read a text as encoding/json does, and says
// whether that takes it.
func same(t testing.TB, typ reflect.Type, read func([]byte, any) error, text []byte) bool {
	t.Helper()
	want, got := reflect.New(typ), reflect.New(typ)
	werr, err := json.Unmarshal(text, want.Interface()), read(text, got.Interface())
	switch {
	case (werr == nil) != (err == nil):
		t.Fatalf("%s of %q: %v; encoding/json: %v", typ, text, err, werr)
	case err == nil && !reflect.DeepEqual(want.Interface(), got.Interface()):
		t.Fatalf("%s of %q:\n%+v\nencoding/json:\n%+v", typ, text, got.Elem(), want.Elem())
	}
	return err == nil
}

var keys = regexp.MustCompile(`"\w+":`)

// Every field of every type is read and written as encoding/json does. Where one is
// missing the types have changed: go generate ./internal/runtime/native/codec.
func TestFieldsAsEncodingJSON(t *testing.T) {
	for typ, read := range readers(t) {
		for _, v := range filled(typ) {
			text, err := json.Marshal(v.Interface())
			if err != nil {
				t.Fatal(err)
			}
			other := keys.ReplaceAllFunc(text, bytes.ToUpper) // names are found without regard to case
			if !same(t, typ, read, text) || !same(t, typ, read, other) {
				t.Fatalf("%s of %q: refused", typ, text)
			}
		}
	}
	for typ, write := range writers(t) {
		for _, v := range filled(typ) {
			want, err := json.Marshal(v.Interface())
			if err != nil {
				t.Fatal(err)
			}
			if got, err := write(v.Interface()); err != nil || string(got) != string(want) {
				t.Fatalf("%s: %v:\n%s\nencoding/json:\n%s", typ, err, got, want)
			}
		}
	}
	if _, err := WriteRecordState(&record.State{Created: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}); err == nil {
		t.Error("a time that RFC 3339 has no word for is written")
	}
}

// odd are texts in which JSON is used in ways that a runtime's callers seldom do.
var odd = []string{
	`null`, `{}`, ` {"process":null,"root":null,"hostname":null,"mounts":null,"annotations":null} `, `[]`, `"x"`, `1`, `{"process":[]}`, `{"process":{"args":{}}}`,
	`{"mounts":[{"destination":"/a","type":"x"},{"destination":"/b"}],"mounts":[{"source":"y"}],"mounts":[{},{},{"type":null}]}`,
	`{"linux":{"sysctl":{"a":"1"},"sysctl":{"b":null,"a":"2"},"resources":{"memory":{"limit":1},"memory":{"swap":2}},"resources":null}}`,
	`{"Process":{"ARGS":["a"],"args":["b"],"ar\u0067s":["c"],"terminal":true,"Terminal":false,"oom\u017fcoreAdj":5}}`, `{"proceſs":{"arg\u017f":["x"]},"linux":{"sysct\u212a":{}}}`,
	`{"linux":{"resources":{"memory":{"limit":1.0}}}}`, `{"linux":{"resources":{"memory":{"limit":-0,"swap":-9223372036854775808,"swappiness":18446744073709551615}}}}`,
	`{"linux":{"resources":{"memory":{"limit":9223372036854775808}}}}`, `{"linux":{"resources":{"memory":{"swappiness":-0}}}}`, `{"process":{"user":{"uid":4294967296}}}`, `{"process":{"user":{"uid":"1"}}}`,
	`{"windows":{"credentialSpec":{"a":[1,2e3,-0.5,{"b":null}],"c":1e999}}}`, `{"windows":{"credentialSpec":{"a":[1,2e3,-0.5,{"b":null}],"a":[],"c":"\ud83d\ude00\ud83d\u0041\udc00"}}}`,
	`{"hostname":"\ud83dx\u0000\/\b"}`, "{\"hostname\":\"\xff\xed\xa0\x80\"}", "{\"hostname\":\"\n\"}", `{"hostname":"\x41"}`, `{"hostname":"\u12g4"}`, `{"hostname":"`, `{"hostname":"\`,
	`{"x":01}`, `{"x":1.}`, `{"x":.1}`, `{"x":-}`, `{"x":1e}`, `{"x":1E+2}`, `{"x":tru}`, `{"x":nul`, `{"x":[1,]}`, `{"x":{"a"}}`, `{"x":1,}`, `{,}`, `{"x" 1}`, `{} {}`, `{}x`, ``, ` `, "\ufeff{}", "{}\x00",
	`{"created":"2026-11-22T13:14:15.123456789+01:00"}`, `{"created":null}`, `{"created":1}`, `{"created":[{}]}`, `{"created":"2026"}`, `{"created":"2026-11-22T13:14:15Z\u0020"}`,
	`{"mounts":[]}`, `{"mounts":[null,{}]}`, `{"hooks":{"prestart":[{"path":"/a","timeout":null,"args":[null,"b"]}]}}`,
	`{"linux":{"resources":{"blockIO":{"weightDevice":[{"major":1,"minor":2,"weight":65535}],"throttleReadBpsDevice":[{"MAJOR":1,"rate":18446744073709551615}]}}}}`,
	`{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"syscalls":[{"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}]}}}`,
	`{"linux":{"timeOffsets":{"boottime":{"secs":-1,"nanosecs":4294967295}},"netDevices":{"eth0":{"name":"x"}}}}`, `{"Mounts":[{"Dest":"/","Propagation":[1,2],"Params":[{"Key":"a"}],"Sent":1}],"Join":[3,4]}`,
}

func TestOddTexts(t *testing.T) {
	for typ, read := range readers(t) {
		for _, text := range odd {
			same(t, typ, read, []byte(text))
		}
		for _, depth := range []int{9999, 10000} { // the last that encoding/json takes, and one more
			text := `{"x":` + strings.Repeat("[", depth) + strings.Repeat("]", depth) + `}`
			if same(t, typ, read, []byte(text)) != (depth == 9999) {
				t.Errorf("%s: depth %d", typ, depth)
			}
		}
	}
}

// Whatever there is to read, it is read as encoding/json does.
func FuzzAsEncodingJSON(f *testing.F) {
	for _, text := range odd {
		f.Add([]byte(text))
	}
	for _, typ := range source.Read {
		for _, v := range filled(typ)[:3] {
			text, err := json.Marshal(v.Interface())
			if err != nil {
				f.Fatal(err)
			}
			f.Add(text)
		}
	}
	all := readers(f)
	f.Fuzz(func(t *testing.T, text []byte) {
		for typ, read := range all {
			same(t, typ, read, text)
		}
	})
}

// Errors name the field.
func TestWords(t *testing.T) {
	for text, want := range map[string]string{
		`{"process":{"args":"x"}}`:                         `process.args: "x" where an array is due`,
		`{"linux":{"resources":{"memory":{"limit":1.5}}}}`: `linux.resources.memory.limit: 1.5 where a whole number that fits is due`,
		`{"linux":{"sysctl":{"a.b":7}}}`:                   `linux.sysctl.a.b: 7 where a string is due`,
		`{"mounts":[{"type":"x"},{"type":1}]}`:             `mounts.type: 1 where a string is due`,
		`[]`:                                               `[] where an object is due`,
		`{"root":{"path":"a"}`:                             `byte 20: the end where a comma or '}' is due`,
		`{"x":nope}`:                                       `byte 6: 'o' where "null" is due`,
		`{"hostname":["` + strings.Repeat("é", 100) + `"]}`:             `hostname: ["` + strings.Repeat("é", 19) + `… where a string is due`,
		`{"process":{"user":{"additionalGids":[1,-2]}}}`:                `process.user.additionalGids: -2 where a whole number that is not negative and fits is due`,
		`{"annotations":{"a":"b"},"process":{"terminal":"yes"}}`:        `process.terminal: "yes" where true or false is due`,
		`{"linux":{"namespaces":[{"type":"pid"}],"devices":{"x":"y"}}}`: `linux.devices: {"x":"y"} where an array is due`,
		"{\"mounts\":{\"a\":\n\t1}}":                                    `mounts: {"a":  1} where an array is due`,
		"\ufeff{}":                                                      `byte 0: '\ufeff' where a value is due`,
		"{\"hostname\":\xff\"\"":                                        "byte 12: '\ufffd' where a value is due",
		"{\"annotations\":{\"\\u001b[2J\\nall is well\":[\"\u009b\"]}}": "annotations.\ufffd[2J all is well: [\"\ufffd\"] where a string is due", // nothing that a terminal would act on
		`{"annotations":{"` + strings.Repeat("a", 1<<20) + `":1}}`:      "annotations." + strings.Repeat("a", 40) + "…: 1 where a string is due",
	} {
		if err := ReadSpec([]byte(text), &specs.Spec{}); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// What is generated is what gen would write now.
func TestGenerated(t *testing.T) {
	files := source.Files()
	for name, want := range files {
		if got, err := os.ReadFile(name); err != nil || string(got) != string(want) {
			t.Errorf("%s is not of these types: go generate ./internal/runtime/native/codec (%v)", name, err)
		}
	}
	found, err := filepath.Glob("*_*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range found {
		if files[name] == nil && !strings.HasSuffix(name, "_test.go") {
			t.Errorf("%s is not generated any more: remove it", name)
		}
	}
}
