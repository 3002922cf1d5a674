// Package server is a registry of images: the OCI distribution API over a
// directory, by github.com/distribution/distribution as a library. Around the
// library stand the parts it does not have: the referrers API, a collection of
// garbage that runs while clients push, retention rules, several pull-through
// mirrors beside the registry's own content, and images of the engine that were
// never pushed. Why the collection takes nothing it must not is in
// docs/decisions/0010-online-collection.md.
package server
