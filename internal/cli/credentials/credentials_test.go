package credentials

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFile(t *testing.T) {
	dir := t.TempDir()
	real := filepath.Join(dir, "real.json")
	if err := os.WriteFile(real, []byte(`{"psFormat":"x","auths":{"other":{"auth":"b3RoZXI6cHc=","email":"e"}},"unknown":[1]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	s := Store{filepath.Join(dir, "conf")}
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, s.File()); err != nil {
		t.Fatal(err)
	}
	for _, l := range []Login{{Username: "ann", Password: "se:cret"}, {Username: "ann", IdentityToken: "tok"}} {
		if plain, err := s.Put(t.Context(), "r.example:5000", l); err != nil || !plain {
			t.Errorf("put: %v, %v", plain, err)
		}
		if got, err := s.Get(t.Context(), "r.example:5000"); err != nil || got != l {
			t.Errorf("got %+v, %v, want %+v", got, err, l)
		}
	}
	if got, err := s.Get(t.Context(), "other"); err != nil || got != (Login{Username: "other", Password: "pw"}) {
		t.Errorf("other: %+v, %v", got, err)
	}
	if found, err := s.Erase(t.Context(), "r.example:5000"); err != nil || !found {
		t.Errorf("erased: %v, %v", found, err)
	}
	if found, err := s.Erase(t.Context(), "r.example:5000"); err != nil || found {
		t.Errorf("erased twice: %v, %v", found, err)
	}
	b, err := os.ReadFile(real) // through the link
	if err != nil {
		t.Fatal(err)
	}
	var all map[string]any
	if err := json.Unmarshal(b, &all); err != nil || all["psFormat"] != "x" || all["unknown"] == nil || !strings.Contains(string(b), `"email": "e"`) {
		t.Errorf("left: %s, %v", b, err)
	}
	if info, err := os.Stat(real); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v, %v", info.Mode(), err)
	}
	if names, _ := filepath.Glob(filepath.Join(dir, ".config*")); len(names) > 0 {
		t.Errorf("left behind: %s", names)
	}
}

func TestHelper(t *testing.T) {
	dir := t.TempDir()
	program := `#!/bin/sh
case $1 in
store) cat > "$HELD" ;;
get) read -r server; if [ -s "$HELD" ]; then cat "$HELD"; else echo "credentials not found in native keychain"; exit 1; fi ;;
erase) read -r server; rm "$HELD" ;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-fake"), []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("HELD", filepath.Join(dir, "held"))
	s := Store{dir}
	if err := os.WriteFile(s.File(), []byte(`{"credsStore":"missing","credHelpers":{"r.example":"fake"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := s.Get(t.Context(), "r.example"); err != nil || l != (Login{}) {
		t.Errorf("nothing yet: %+v, %v", l, err)
	}
	for _, l := range []Login{{Username: "ann", Password: "secret"}, {IdentityToken: "tok"}} {
		if plain, err := s.Put(t.Context(), "r.example", l); err != nil || plain {
			t.Errorf("put: %v, %v", plain, err)
		}
		if got, err := s.Get(t.Context(), "r.example"); err != nil || got != l {
			t.Errorf("got %+v, %v, want %+v", got, err, l)
		}
	}
	b, _ := os.ReadFile(s.File())
	if strings.Contains(string(b), "tok") || strings.Contains(string(b), base64.StdEncoding.EncodeToString([]byte("ann:secret"))) {
		t.Errorf("the file has it too: %s", b)
	}
	if found, err := s.Erase(t.Context(), "r.example"); err != nil || !found {
		t.Errorf("erased: %v, %v", found, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "held")); !os.IsNotExist(err) {
		t.Error("the helper has it still")
	}
	if _, err := s.Get(t.Context(), "elsewhere"); err == nil || !strings.Contains(err.Error(), "credential helper missing") {
		t.Errorf("a helper that is not there: %v", err)
	}
}

// Whatever stands in a configuration file, nothing panics.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"auth":"YTpi"}`))
	f.Add([]byte(`{"auth":"YTpi","identitytoken":"t"}`))
	f.Add([]byte(`{"auth":"="}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decode(b)
		if err == nil && l.Username == "" && l.Password != "" {
			t.Errorf("%q: a password of nobody: %+v", b, l)
		}
	})
}

// A helper that hangs, whatever signals it ignores, ends with the call; one that prints rubbish,
// without end, or fails, is told of and costs no memory; a process that it leaves behind holds up nobody.
func TestHostileHelpers(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	s := Store{dir}
	if err := os.WriteFile(s.File(), []byte(`{"credsStore":"evil","auths":{"r.example":{}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, program, want string }{
		{"hangs", "trap '' INT TERM HUP; while :; do sleep 0.05; done", "context deadline exceeded"},
		{"rubbish", "printf '\\377\\000{'", "credential helper evil: "},
		{"nothing", "true", "credential helper evil: "},
		{"another kind", "echo '{\"Username\":[1]}'", "credential helper evil: "},
		{"endless", "yes 0123456789abcdef", "it says more than"},
		{"endless failure", "yes 0123456789abcdef >&2; exit 3", "it says more than"},
		{"fails", "echo locked; exit 1", "exit status 1: locked"},
		{"leaves a process", "sleep 6 & echo '{\"Username\":\"ann\",\"Secret\":\"s\"}'", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			program := "#!/bin/sh\n" + c.program + "\n"
			if err := os.WriteFile(filepath.Join(dir, "docker-credential-evil"), []byte(program), 0o755); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			if c.name == "hangs" {
				ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
			}
			defer cancel()
			begin := time.Now()
			l, err := s.Get(ctx, "r.example")
			if took := time.Since(begin); took > 4*time.Second {
				t.Errorf("it took %v", took)
			}
			switch {
			case c.want == "" && (err != nil || l.Username != "ann"):
				t.Errorf("%+v, %v", l, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 8192):
				t.Errorf("%.300v, want %s", err, c.want)
			}
			if c.name != "hangs" && c.want != "" {
				before, _ := os.ReadFile(s.File())
				_, eraseErr := s.Erase(ctx, "r.example")
				if after, _ := os.ReadFile(s.File()); eraseErr == nil || string(after) != string(before) {
					t.Errorf("erasing: %.200v; the file is %q", eraseErr, after)
				}
			}
		})
	}
}
