package cluster

import "time"

// App is a project of compose that is kept as it is written: the services,
// networks and volumes it owns follow its Spec.
type App struct {
	Meta
	Spec   AppSpec
	Status AppStatus
	// History are the specs before this one, the newest first, bounded.
	History []AppRevision `json:",omitempty"`
	AskedAt time.Time     // when Spec was asked
}

// Full is the name that a part of an app has among all of its kind.
func Full(app, part string) string { return app + "_" + part }

// Kind implements Object.
func (*App) Kind() Kind { return KindApp }

// AppSpec is what an app is to be, by names that are unique in it.
type AppSpec struct {
	Number   uint64                 // counts what was asked, from 1
	Services map[string]ServiceSpec `json:",omitempty"`
	Networks map[string]NetworkSpec `json:",omitempty"`
	Volumes  map[string]VolumeSpec  `json:",omitempty"`
	Secrets  map[string]SecretSpec  `json:",omitempty"`
	Configs  map[string]ConfigSpec  `json:",omitempty"`
	Source   string                 `json:",omitempty"` // the files it was read from, as they were resolved: YAML
	Dir      string                 `json:",omitempty"` // of the project
	Files    []string               `json:",omitempty"`
	Removed  bool                   `json:",omitempty"` // down: it goes once all that it owns has gone
	Released bool                   `json:",omitempty"` // it goes, and its containers stay
	Volumed  bool                   `json:",omitempty"` // its volumes go, too
}

// AppRevision is a spec that an app has had.
type AppRevision struct {
	At   time.Time
	Spec AppSpec
}

// AppStatus is how far an app is.
type AppStatus struct {
	Number  uint64 `json:",omitempty"` // of the spec that is in place, or being put there
	Phase   AppPhase
	Message string `json:",omitempty"`
}

// AppPhase says what is being done with an app.
type AppPhase string

// The phases of an app.
const (
	AppChanging AppPhase = "changing"
	AppSteady   AppPhase = "steady"   // all is as it was asked
	AppFailed   AppPhase = "failed"   // it cannot become so; Message says why
	AppReverted AppPhase = "reverted" // it could not, and is what it was before
)
