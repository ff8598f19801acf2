"""The checks of the conformance kit, a module for each part of the contract; see `plait_authoring.conformance`."""
