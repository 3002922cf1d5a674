// Package archive moves files in and out of a file system tree whose contents
// may be hostile and may change meanwhile: the root of a container. A tree is
// given as an open directory; every name is resolved by the kernel inside it
// (openat2 with RESOLVE_IN_ROOT), and all work is relative to open directories,
// so that no symbolic link, swapped at whatever moment, leads out of the tree.
//
// All functions block as long as the disk and the stream take; those with a
// context end at the next file when it ends. Errors have the kinds of
// containerd/errdefs where the asker is at fault; else they are the kernel's.
package archive
