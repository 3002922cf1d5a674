// Package managed keeps plugins that come from registries and that the engine runs
// itself, as Docker's managed plugins: `plugin install`, `enable`, `create`, `push`.
//
// A plugin is a root file system, a configuration that says what it needs of the machine,
// and settings. It runs under a monitor as containers do (internal/runtime), so it
// outlives the engine; its socket lies below the exec root, and what it mounts at
// its propagated mount is seen by the machine. What it needs is asked of the user first: a
// pull names the privileges that were granted, and they must be all.
package managed
