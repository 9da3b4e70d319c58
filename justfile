# The chores of the project; `cargo xtask help` has their options.

# List the chores.
default:
    @just --list

# Convert an image, prove it equal to its source, mount it lazily.
demo *image:
    cargo xtask demo {{image}}

# Tests without privileges.
test:
    cargo xtask test

# Tests that mount for real (root).
test-privileged:
    cargo xtask test --privileged

# Formatting, clippy, direction of dependencies, ASCII.
lint:
    cargo xtask lint

# The fuzz targets, guided by coverage.
fuzz *arguments:
    cargo xtask fuzz {{arguments}}

# Tests of pure Rust under Miri (nightly).
miri *crates:
    cargo xtask miri {{crates}}

# Images converted by containerd's converter with our builder (Go).
consumers:
    cargo xtask consumers

# Our images, seen by the published reader (compiles for minutes at first).
oracle *filter:
    cargo xtask oracle {{filter}}

# The table of docs/benchmarks.md.
bench *arguments:
    cargo xtask bench {{arguments}}

# What a release consists of: static binaries, archives, a container image (`--check` proves it).
dist *options:
    cargo xtask dist {{options}}

# Make tests/fixtures anew.
fixtures:
    cargo xtask fixtures

# All that CI runs.
ci:
    bash .ci/run
