"""How many candidates each source gives to a request: shares learned from what the sources' lists were worth before."""
