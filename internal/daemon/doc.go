// Package daemon wires the engine: it alone knows which implementation stands
// behind each interface. Config → New → Run → Close in reverse.
package daemon
