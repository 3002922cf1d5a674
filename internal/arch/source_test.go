package arch

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

const module = "escale.dev/escale"

// pkg is what `go list -json` says of a package of the module, and its parsed files.
type pkg struct {
	ImportPath, Dir, Name string
	GoFiles, CgoFiles     []string
	TestGoFiles           []string
	XTestGoFiles          []string
	Imports, Deps         []string
	TestImports           []string
	Error                 *struct{ Err string }
	path                  string // below the module; "." is the root
	files                 []*source
	fset                  *token.FileSet
}

// source is a file that is no test.
type source struct {
	name  string // below the module
	lines int
	ast   *ast.File
}

// load lists and parses the module once for all tests.
var load = sync.OnceValues(func() ([]*pkg, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	pkgs, err := list(root, "./...")
	if err != nil {
		return nil, err
	}
	for _, p := range pkgs {
		p.path = strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		p.fset = token.NewFileSet()
		for _, name := range slices.Concat(p.GoFiles, p.CgoFiles) {
			full := filepath.Join(p.Dir, name)
			f, err := parser.ParseFile(p.fset, full, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				return nil, err
			}
			if ast.IsGenerated(f) {
				continue // nobody has written it
			}
			p.files = append(p.files, &source{filepath.Join(p.path, name), p.fset.File(f.FileStart).LineCount(), f})
		}
	}
	return pkgs, nil
})

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == "/" {
			return "", errors.New("no go.mod above the test")
		}
	}
}

func list(root string, patterns ...string) ([]*pkg, error) {
	cmd := exec.Command("go", append([]string{"list", "-e", "-json=ImportPath,Dir,Name,GoFiles,CgoFiles,TestGoFiles,XTestGoFiles,Imports,Deps,Error"}, patterns...)...)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0") // as it is built and tested
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, stderr.String())
	}
	var pkgs []*pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		p := new(pkg)
		if err := d.Decode(p); errors.Is(err, io.EOF) {
			return pkgs, nil
		} else if err != nil {
			return nil, err
		}
		pkgs = append(pkgs, p)
	}
}

func packages(t *testing.T) []*pkg {
	t.Helper()
	pkgs, err := load()
	if err != nil {
		t.Fatal(err)
	}
	if len(pkgs) < 5 {
		t.Fatalf("only %d packages found: is the module listed?", len(pkgs))
	}
	return pkgs
}

// ours is an import path below the module, or "".
func ours(importPath string) string {
	rest, ok := strings.CutPrefix(importPath, module+"/")
	if !ok {
		return ""
	}
	return rest
}

// within reports whether path is dir or below it.
func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }
