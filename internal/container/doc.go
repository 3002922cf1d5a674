// Package container is the life of containers: their records, the state
// machine, the ordered steps of a start and their undo, exits, restarts, health
// checks, execs, and the recovery of all of it after the engine was killed.
package container
