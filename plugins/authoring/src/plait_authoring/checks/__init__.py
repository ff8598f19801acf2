"""The checks of the conformance kit, a module for each part of the contract; `plait_authoring.conformance` lists them."""
