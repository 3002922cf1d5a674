// Package plugin finds the programs that extend the engine and talks with them, by
// Docker's plugin protocol v1 (https://docs.docker.com/engine/extend/plugin_api/): a
// socket or a small file with an address tells where a plugin is, a handshake what
// it can do, and each call is a POST of JSON that is answered with JSON.
//
// A plugin is somebody else's program: it may hang, die, or answer nonsense. Every
// call has a time, every answer a size; who hangs is left out of what asks all.
package plugin
