// Package arch holds the tests that keep the house in order: the layers, the
// documentation of packages, the budgets of size, and the leanness of the small
// binaries. It has no code of its own. Whoever breaks a rule is told the file, the
// number, the limit, and what to do.
package arch
