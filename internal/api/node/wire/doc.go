// Package wire is the protocol between nodes and managers as protoc has made it of
// node.proto: make proto makes it anew.
package wire
