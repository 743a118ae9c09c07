#!/usr/bin/env bash
# Builds the Dockerfile for real and runs each stage's program, without an image registry: the base images are
# stand-ins of the right names, made from a debootstrap tree, the builder's one with this machine's Rust toolchain.
#
#   bash tests/image/build.sh            optimises little, a few minutes
#   FULL=1 bash tests/image/build.sh     the very build that is released
#
# Needs root, Debian's packages buildah and debootstrap, and some 10 GiB below TMPDIR, which are given back.
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() { echo "tests/image/build.sh: $*" >&2; exit 1; }
for tool in buildah debootstrap cargo rustc; do
    command -v "$tool" >/dev/null || fail "$tool is missing; apt-get install buildah debootstrap"
done
[ "$(id -u)" = 0 ] || fail "debootstrap and buildah's chroot need root"

suite=bookworm
# Where this machine has its own packages from.
mirror=${MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -n 1)}
[ -n "$mirror" ] || fail "apt has no source; MIRROR=http://… names one"
work=$(mktemp -d)
# Everything that is written lies below $work, the images as well.
export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs TMPDIR=$work/tmp
mkdir -p "$TMPDIR"
buildah() { command buildah --root "$work/storage" --runroot "$work/run" "$@"; }
trap 'buildah rm --all >/dev/null 2>&1 || true; rm -rf "$work"' EXIT

echo "== the stand-in of debian:$suite-slim"
debootstrap --variant=minbase "$suite" "$work/slim" "$mirror" >"$work/log" 2>&1 \
    || { tail -n 20 "$work/log" >&2; fail "debootstrap failed"; }
rm -rf "$work"/slim/var/cache/apt/archives/*.deb "$work"/slim/var/lib/apt/lists/*
# commit_image NAME TREE [VARIABLE=VALUE…]
commit_image() {
    local name=$1 tree=$2 container
    shift 2
    container=$(buildah from scratch)
    buildah copy --quiet "$container" "$tree" / >/dev/null
    buildah config --cmd bash "${@/#/--env=}" "$container"
    buildah commit --quiet "$container" "localhost/$name" >/dev/null
    buildah rm "$container" >/dev/null
}
commit_image "debian:$suite-slim" "$work/slim"

echo "== the stand-in of rust:1.95-$suite"
debootstrap --variant=minbase --include=gcc,libc6-dev,make,ca-certificates "$suite" "$work/rust" "$mirror" >"$work/log" 2>&1 \
    || { tail -n 20 "$work/log" >&2; fail "debootstrap failed"; }
mkdir -p "$work/rust/usr/local/cargo"
cp -a "$(rustc --print sysroot)/." "$work/rust/usr/local/rust"
rm -rf "$work/rust/usr/local/rust/share/doc"
# The crates come along, since what reaches them from here may not from within.
cargo vendor --locked --versioned-dirs "$work/rust/usr/local/cargo/vendor" 2>"$work/log" \
    | sed "s|$work/rust||" >"$work/rust/usr/local/cargo/config.toml" || { cat "$work/log" >&2; fail "cargo vendor failed"; }
quick=(CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_OPT_LEVEL=0)
[ -z "${FULL:-}" ] || quick=()
commit_image "rust:1.95-$suite" "$work/rust" CARGO_HOME=/usr/local/cargo CARGO_NET_OFFLINE=true \
    PATH=/usr/local/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin "${quick[@]}"
rm -rf "$work/rust" "$work/slim"

# run_stage TARGET ARGUMENT…: what its entry point says, asked inside the image as its own user.
for stage in proxy control-plane demo-app; do
    echo "== the stage $stage"
    buildah build --quiet --layers --pull-never --format docker --target "$stage" --tag "localhost/gilmok-$stage" . >/dev/null
    container=$(buildah from --pull-never "localhost/gilmok-$stage")
    [ "$(buildah run "$container" -- id -u)" = 65532 ] || fail "$stage runs as root"
    buildah run "$container" -- "/usr/local/bin/gilmok-$stage" --help >/dev/null || fail "$stage cannot be run"
    buildah run "$container" -- test -w /var/lib/gilmok || fail "$stage cannot write its state"
    buildah run "$container" -- grep -q 'BEGIN CERTIFICATE' /etc/ssl/certs/ca-certificates.crt || fail "$stage has no authorities"
    # The health check as the image tells it, against the program as the image starts it.
    if [ "$stage" != proxy ]; then
        check=$(buildah inspect --type image --format '{{index .Docker.Config.Healthcheck.Test 3}}' "localhost/gilmok-$stage")
        buildah run "$container" -- bash -c '
            "$1" & program=$!
            for _ in $(seq 100); do
                if bash -c "$2" 2>/dev/null; then kill -TERM "$program"; wait "$program" || true; exit 0; fi
                read -rt 0.1 <> <(:) || true
            done
            kill -KILL "$program"; exit 1' - "/usr/local/bin/gilmok-$stage" "$check" \
            || fail "the health check of $stage does not pass"
    fi
    buildah rm "$container" >/dev/null
    size=$(buildah images --format '{{.Size}}' "localhost/gilmok-$stage")
    echo "   fine, $size with the stand-in's base"
done
echo "all stages build, run as an ordinary user and pass their health checks"
