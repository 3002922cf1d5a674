// Package handed is what the command line escale tells the program that does its heavy
// work, escaled: which engine is meant. It goes from one to the other as JSON on a file
// descriptor. It links nothing, because escale links it.
package handed

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// FD is the file descriptor that the started program reads.
const FD = 3

// Compose is the word that makes escaled the command line of compose, and Flag what
// stands behind it when an Engine comes on FD.
const (
	Compose = "compose"
	Flag    = "--handed"
)

// DevCluster is the word that makes escaled the command line of `cluster dev`.
const DevCluster = "cluster-dev"

// Engine is the engine that commands are meant for.
type Engine struct {
	Name                        string // of the program, as it was called
	Host, APIVersion, UserAgent string // Host is unix://PATH, of this machine
	Headers                     map[string]string
	ConfigDir                   string // of Docker's config.json
	Debug                       bool
	ByName                      bool     // the arguments name an app; no file is read
	Proxies                     []string // NAME=VALUE: the variables that containers and builds get
}

// Read reads what was handed on FD, and closes it.
func Read() (*Engine, error) {
	f := os.NewFile(FD, "handed")
	if f == nil {
		return nil, fmt.Errorf("descriptor %d is not open", FD)
	}
	defer f.Close()
	return Decode(f)
}

// Decode reads an Engine.
func Decode(r io.Reader) (*Engine, error) {
	var e Engine
	if err := json.NewDecoder(r).Decode(&e); err != nil {
		return nil, fmt.Errorf("the engine that was handed over: %w", err)
	}
	return &e, nil
}

// StackWord is the word that makes escaled do what a Stack asks for, which comes on FD.
const StackWord = "stack"

// What is done about a stack.
const (
	StackDeploy = "deploy"
	StackConfig = "config"
)

// Stack is what is asked of the compose files of a stack, and of which engine.
type Stack struct {
	Engine              Engine
	Do                  string // StackDeploy or StackConfig
	Name                string
	Files               []string
	SkipInterpolation   bool // of StackConfig; the others are of StackDeploy
	Auth, Prune, Quiet  bool
	Detach, DetachGiven bool
	ResolveImage        string // always, changed or never
}

// ReadStack reads what was handed on FD, and closes it.
func ReadStack() (*Stack, error) {
	f := os.NewFile(FD, "handed")
	if f == nil {
		return nil, fmt.Errorf("descriptor %d is not open", FD)
	}
	defer f.Close()
	var s Stack
	if err := json.NewDecoder(f).Decode(&s); err != nil {
		return nil, fmt.Errorf("the stack that was handed over: %w", err)
	}
	return &s, nil
}
