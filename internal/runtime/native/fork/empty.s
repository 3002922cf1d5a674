// The package has functions without a body: the compiler wants an assembly file beside them.
