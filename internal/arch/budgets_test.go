package arch

import (
	"fmt"
	"go/ast"
	"maps"
	"slices"
	"strings"
	"testing"
)

// Budgets of size. conventions: methods piled on one receiver and imports piled on one
// package are what ruins such projects.
const (
	maxMethods      = 40
	maxImports      = 15 // of this module's own packages; internal/daemon wires and is exempt
	maxParameters   = 8  // of a constructor
	maxFunctionSize = 80 // lines
	maxFileSize     = 500
	maxMainSize     = 40 // lines of a file of package main below cmd
)

// allowances are what was over budget when the rule came, with the number it stood at.
// It may only shrink: no entry is added and no number raised; one that got better must
// have its number lowered, one within budget be taken out (the test says so).
var allowances = map[string]int{}

// overrun is a subject over its budget.
type overrun struct {
	size, limit int
	where       string // file:line, or the package
	advice      string
}

// measure finds all that is over budget, by a name that survives moved lines.
func measure(pkgs []*pkg) map[string]overrun {
	over := map[string]overrun{}
	check := func(key string, o overrun) {
		if o.size > o.limit {
			over[key] = o
		}
	}
	for _, p := range pkgs {
		methods, at := map[string]int{}, map[string]string{}
		for _, f := range p.files {
			check("file "+f.name, overrun{f.lines, maxFileSize, f.name, "lines: split it by what its parts are about"})
			if p.Name == "main" && within(p.path, "cmd") {
				check("main "+f.name, overrun{f.lines, maxMainSize, f.name, "lines: a main only calls; move the rest into a package"})
			}
			for _, d := range f.ast.Decls {
				fn, ok := d.(*ast.FuncDecl)
				if !ok {
					continue
				}
				name := p.path + "." + funcName(fn)
				where := fmt.Sprintf("%s:%d", f.name, p.fset.Position(fn.Pos()).Line)
				lines := p.fset.Position(fn.End()).Line - p.fset.Position(fn.Pos()).Line + 1
				check("func "+name, overrun{lines, maxFunctionSize, where, "lines: name its steps as functions"})
				if r := receiver(fn); r != "" {
					methods[r]++
					at[r] = where
				} else if strings.HasPrefix(fn.Name.Name, "New") || strings.HasPrefix(fn.Name.Name, "new") {
					check("parameters "+name, overrun{fn.Type.Params.NumFields(), maxParameters, where, "parameters: give it a Config, or let it do less"})
				}
			}
		}
		for r, n := range methods {
			check("methods "+p.path+"."+r, overrun{n, maxMethods, at[r], "methods: some of them are a type of their own"})
		}
		if within(p.path, "internal/daemon") {
			continue
		}
		n := 0
		for _, imp := range p.Imports {
			if ours(imp) != "" {
				n++
			}
		}
		check("imports "+p.path, overrun{n, maxImports, p.path, "of our own packages imported: it knows too much; take interfaces, or split it"})
	}
	return over
}

func receiver(fn *ast.FuncDecl) string {
	if fn.Recv == nil || len(fn.Recv.List) == 0 {
		return ""
	}
	e := fn.Recv.List[0].Type
	for {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.IndexListExpr:
			e = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}

func funcName(fn *ast.FuncDecl) string {
	if r := receiver(fn); r != "" {
		return r + "." + fn.Name.Name
	}
	return fn.Name.Name
}

func TestBudgets(t *testing.T) {
	over := measure(packages(t))
	for _, key := range slices.Sorted(maps.Keys(over)) {
		o := over[key]
		allowed, ok := allowances[key]
		switch {
		case !ok:
			t.Errorf("%s: %s has %d %s (limit %d)", o.where, key, o.size, o.advice, o.limit)
		case o.size > allowed:
			t.Errorf("%s: %s grew from %d to %d %s (limit %d; allowances only shrink)", o.where, key, allowed, o.size, o.advice, o.limit)
		case o.size < allowed:
			t.Errorf("%s: %s got better, well done: lower its number in allowances from %d to %d", o.where, key, allowed, o.size)
		}
	}
	for key := range allowances {
		if _, ok := over[key]; !ok {
			t.Errorf("%s is within budget now, or gone: take it out of allowances", key)
		}
	}
}
