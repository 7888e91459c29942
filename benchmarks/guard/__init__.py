"""The guard: records the bits and the speed of many small trainings, and says what a change of the code did to them."""
