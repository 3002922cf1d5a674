// Package simulation lets the loops of the orchestrator work on machines that are made
// up, in one process and in a time of its own: thousands of histories, of crashes,
// failing images and updates amid updates, after each of which what is must be what
// was asked.
package simulation
