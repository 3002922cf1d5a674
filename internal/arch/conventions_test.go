package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestEveryPackageHasADocComment(t *testing.T) {
	for _, p := range packages(t) {
		documented := slices.ContainsFunc(p.files, func(f *source) bool { return f.ast.Doc.Text() != "" })
		if len(p.files) == 0 { // tests only
			for _, name := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
				f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ParseComments|parser.PackageClauseOnly)
				documented = documented || err == nil && f.Doc.Text() != ""
			}
		}
		if !documented {
			t.Errorf("%s has no doc comment: say in front of one `package %s` what it is for", p.path, p.Name)
		}
	}
}

var vague = regexp.MustCompile(`^(util|utils|common|helper|helpers|types|base|misc|shared)$|utils?$`)

func TestNames(t *testing.T) {
	for _, p := range packages(t) {
		for part := range strings.SplitSeq(p.path, "/") {
			if vague.MatchString(part) {
				t.Errorf("%s: %q says nothing; name the package after what it provides", p.path, part)
			}
		}
	}
}

func TestNoInitFunctions(t *testing.T) {
	for _, p := range packages(t) {
		for _, f := range p.files {
			for _, d := range f.ast.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("%s:%d: init function: wire it by hand where it is used", f.name, p.fset.Position(fn.Pos()).Line)
				}
			}
		}
	}
}

// Contexts come from the caller; the first from a main, or from the function Main that
// it hands over to. What must outlive its caller says so in a comment
// "// detached: why" on its line or the one before.
func TestContextsComeFromCallers(t *testing.T) {
	for _, p := range packages(t) {
		if p.Name == "main" || within(p.path, "test") {
			continue
		}
		for _, f := range p.files {
			marked := map[int]bool{}
			for _, group := range f.ast.Comments {
				for _, c := range group.List {
					if strings.HasPrefix(c.Text, "// detached:") {
						// The mark may open a comment of several lines.
						marked[p.fset.Position(c.Pos()).Line] = true
						marked[p.fset.Position(group.End()).Line+1] = true
					}
				}
			}
			ast.Inspect(f.ast, func(n ast.Node) bool {
				if fn, ok := n.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "Main" {
					return false
				}
				sel, ok := n.(*ast.SelectorExpr)
				if !ok || sel.Sel.Name != "Background" && sel.Sel.Name != "TODO" {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); !ok || x.Name != "context" {
					return true
				}
				if line := p.fset.Position(sel.Pos()).Line; !marked[line] {
					t.Errorf("%s:%d: context.%s: take ctx from the caller, or mark the line `// detached: why`", f.name, line, sel.Sel.Name)
				}
				return true
			})
		}
	}
}
