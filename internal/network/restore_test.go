package network_test

const victimEnv = "ESCALE_NETWORK_VICTIM"

func victim() {}
