# shellcheck shell=sh disable=SC2034 # sourced; what it sets is used there
# Shared by the scripts of this directory: where guests are cached, how to say things, and a private apt tree for arm64.
# Sourced, not run. POSIX sh.

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=${SQUIB_GUEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/squib-guest}

say() { printf 'guest-images: %s\n' "$*" >&2; }

die() {
    printf 'guest-images: error: %s\n' "$1" >&2
    shift
    for line; do printf '    %s\n' "$line" >&2; done
    exit 1
}

need() {
    for tool; do
        command -v "$tool" >/dev/null 2>&1 || die "the program '$tool' is missing" "install it with the system's package manager and run this again"
    done
}

# One run at a time of each kind: the system drops the lock when the script ends, however it ends.   lock_cache NAME
lock_cache() {
    mkdir -p "$cache" || die "cannot create the cache directory $cache" "set SQUIB_GUEST_CACHE to a directory you can write to"
    command -v flock >/dev/null 2>&1 || return 0
    exec 9>"$cache/lock-$1"
    flock -n 9 && return 0
    say "waiting for another run that fills $cache ($1)"
    flock 9
}

on_debian() { command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1; }

# A private apt tree for one suite: the machine's own mirrors, proxies and keys, but separate lists, cache and package
# status, so neither root nor a change of the machine's package state is needed. Signatures are checked as always.
#   apt_tree SUITE NAME    afterwards: apt_get ..., apt_cache ...; NAME keeps runs of different kinds apart
apt_tree() {
    apt_suite=$1
    apt_root=$cache/apt/$apt_suite-$2
    mkdir -p "$apt_root/state/lists/partial" "$apt_root/cache/archives/partial" "$apt_root/none"
    : >"$apt_root/state/status"
    apt_sources >"$apt_root/sources.list.new"
    {
        # The machine's hooks work on the machine's cache, not on this one.
        printf '#clear DPkg::Post-Invoke;\n#clear DPkg::Pre-Install-Pkgs;\n'
        printf '#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n#clear APT::Update::Pre-Invoke;\n'
        printf 'Dir::Etc::sourcelist "%s/sources.list";\nDir::Etc::sourceparts "%s/none";\n' "$apt_root" "$apt_root"
        printf 'Dir::Etc::preferences "%s/none/x";\nDir::Etc::preferencesparts "%s/none";\n' "$apt_root" "$apt_root"
        printf 'Dir::State "%s/state";\nDir::State::status "%s/state/status";\nDir::Cache "%s/cache";\n' "$apt_root" "$apt_root" "$apt_root"
        printf 'APT::Architecture "arm64";\n#clear APT::Architectures;\nAPT::Architectures { "arm64"; };\n'
        printf 'APT::Install-Recommends "false";\nAPT::Get::AllowUnauthenticated "false";\n'
        printf 'Acquire::AllowInsecureRepositories "false";\nAcquire::Languages "none";\nAcquire::Retries "3";\n'
        printf 'APT::Sandbox::User "";\nDir::Cache::pkgcache "pkgcache.bin";\n'
    } >"$apt_root/apt.conf"
    if cmp -s "$apt_root/sources.list.new" "$apt_root/sources.list" && [ -e "$apt_root/updated" ] &&
        [ -z "$(find "$apt_root/updated" -mtime +1)" ]; then
        rm -f "$apt_root/sources.list.new"
        return 0
    fi
    mv "$apt_root/sources.list.new" "$apt_root/sources.list"
    say "reading Debian's package lists ($apt_suite, arm64)"
    apt_get update >"$apt_root/update.log" 2>&1 ||
        die "the package lists of Debian $apt_suite cannot be read" "$(grep -m1 '^[EW]:' "$apt_root/update.log")" \
            "the log is $apt_root/update.log; mirrors: SQUIB_DEBIAN_MIRROR and SQUIB_DEBIAN_SECURITY_MIRROR name others"
    : >"$apt_root/updated"
}

apt_get() { apt-get -c "$apt_root/apt.conf" "$@"; }
apt_cache() { apt-cache -c "$apt_root/apt.conf" "$@"; }

# sources.list lines for $apt_suite. apt itself says which mirrors this machine uses (it reads deb822 files, one-line
# lists and options alike); variables win.
apt_sources() {
    known='(oldoldstable|oldstable|stable|testing|unstable|sid|buster|bullseye|bookworm|trixie|forky)'
    # shellcheck disable=SC2016 # apt's placeholders
    targets=$(apt-get indextargets --format '$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)' 'Created-By: Packages' 2>/dev/null | sort -u)
    main=$(printf '%s\n' "$targets" | grep -E "\|$known\|main\|" | head -n1)
    security=$(printf '%s\n' "$targets" | grep -E "\|$known(-security|/updates)\|main\|" | head -n1)
    keyring=$(printf '%s\n' "$main" | cut -d'|' -f4)
    case $keyring in /*) ;; *) keyring=/usr/share/keyrings/debian-archive-keyring.gpg ;; esac
    keyring=${SQUIB_DEBIAN_KEYRING:-$keyring}
    main=${SQUIB_DEBIAN_MIRROR:-${main%%|*}}
    security=${SQUIB_DEBIAN_SECURITY_MIRROR:-${security%%|*}}
    [ -n "$main" ] || die "this machine's apt knows no Debian mirror" "set SQUIB_DEBIAN_MIRROR to the address of one (and SQUIB_DEBIAN_KEYRING to Debian's keyring)" \
        "or name files: SQUIB_GUEST_KERNEL=Image SQUIB_GUEST_BUSYBOX=busybox"
    [ -r "$keyring" ] || die "Debian's archive keyring is missing ($keyring)" "install the package debian-archive-keyring, or set SQUIB_DEBIAN_KEYRING"
    options="[arch=arm64 signed-by=$keyring]"
    printf 'deb %s %s %s main\n' "$options" "$main" "$apt_suite"
    case $apt_suite in
    sid | unstable) ;;
    *)
        printf 'deb %s %s %s-updates main\n' "$options" "$main" "$apt_suite"
        [ -z "$security" ] || printf 'deb %s %s %s-security main\n' "$options" "$security" "$apt_suite"
        ;;
    esac
}

# Downloads one package of the private tree and unpacks it:  apt_unpack PACKAGE DIRECTORY
apt_unpack() {
    say "downloading $1 ($apt_suite, arm64)"
    rm -rf "$2.new"
    mkdir -p "$2.new/deb"
    (cd "$2.new/deb" && apt_get -q download "$1" >../download.log 2>&1) ||
        die "the package $1 cannot be downloaded" "$(grep -m1 '^[EW]:' "$2.new/download.log")" "run this again to resume"
    mkdir "$2.new/tree"
    dpkg-deb -x "$2.new"/deb/*.deb "$2.new/tree"
    rm -rf "$2"
    mv "$2.new" "$2"
}
