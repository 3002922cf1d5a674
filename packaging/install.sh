#!/usr/bin/env bash
# install.sh install|uninstall: puts bin/ and what belongs to it under $DESTDIR$PREFIX. With
# DOCKER=1 Escale answers to Docker's names too: group docker, unit docker.service, the command
# docker and the socket /var/run/docker.sock. What exists under these names and is not
# Escale's is left alone, and said. Without DESTDIR, as root, groups and directories are made.
set -euo pipefail
cd "$(dirname "$0")/.."
PREFIX=${PREFIX:-/usr/local} DESTDIR=${DESTDIR-} DOCKER=${DOCKER-}
root=$DESTDIR$PREFIX
unitdir=$DESTDIR/lib/systemd/system
[[ $PREFIX == /usr/local* ]] && unitdir=$DESTDIR/etc/systemd/system
completions=(
	"bash:$root/share/bash-completion/completions/escale"
	"zsh:$root/share/zsh/site-functions/_escale"
	"fish:$root/share/fish/vendor_completions.d/escale.fish"
)
live() { [ -z "$DESTDIR" ] && [ "$(id -u)" = 0 ]; }
systemd() { live && [ -d /run/systemd/system ] && systemctl "$@"; }

file() { install -D -m "$1" "$2" "$3" && echo "  $3"; }

filled() { # template, destination
	mkdir -p "$(dirname "$2")"
	sed "s|@PREFIX@|$PREFIX|g" "$1" >"$2" && chmod 644 "$2" && echo "  $2"
}

link() { # target, name; leaves alone what is not ours
	if [ -e "$2" ] || [ -L "$2" ]; then
		if [ ! -L "$2" ] || [ "$(readlink "$2")" != "$1" ]; then
			echo "  $2 exists and is not Escale's: left alone"
			return
		fi
	fi
	mkdir -p "$(dirname "$2")"
	ln -sfn "$1" "$2" && echo "  $2 -> $1"
}

unlink_ours() { # target, name
	if [ -L "$2" ] && [ "$(readlink "$2")" = "$1" ]; then rm "$2"; fi
}

do_install() {
	for f in bin/escale bin/escaled bin/escale-shim bin/escale-store bin/escale-runtime bin/runc; do
		[ -x $f ] || { echo "$f is missing: make build" >&2; exit 1; }
	done
	file 755 bin/escale "$root/bin/escale"
	file 755 bin/escaled "$root/bin/escaled"
	file 755 bin/escale-shim "$root/libexec/escale/escale-shim"
	file 755 bin/escale-store "$root/libexec/escale/escale-store"
	file 755 bin/escale-runtime "$root/libexec/escale/escale-runtime"
	file 755 bin/runc "$root/libexec/escale/runc"
	if [ -x bin/docker-init ]; then file 755 bin/docker-init "$root/libexec/escale/docker-init"; fi
	for f in README.md LICENSE docs/formats.md docs/glossary.md; do file 644 $f "$root/share/doc/escale/$(basename $f)"; done
	for c in "${completions[@]}"; do
		mkdir -p "$(dirname "${c#*:}")"
		if bin/escale completion "${c%%:*}" >"${c#*:}" 2>/dev/null; then echo "  ${c#*:}"; else rm -f "${c#*:}"; fi
	done
	filled packaging/escale.service "$unitdir/escale.service"
	file 644 packaging/sysusers.conf "$DESTDIR/usr/lib/sysusers.d/escale.conf"
	file 644 packaging/tmpfiles.conf "$DESTDIR/usr/lib/tmpfiles.d/escale.conf"
	if [ -n "$DOCKER" ]; then docker_names; fi
	if live; then
		getent group escale >/dev/null || groupadd --system escale
		install -d -m 711 /run/escale /var/lib/escale
		install -d -m 755 /etc/escale
		systemd daemon-reload || true
		echo "Start it: systemctl enable --now escale    (without systemd: escaled &)"
		echo "Use it without sudo: usermod -aG escale USER    (that user then is root on this machine)"
	fi
}

docker_names() {
	link escale "$root/bin/docker"
	link escale.service "$unitdir/docker.service"
	printf '[Service]\nExecStart=\nExecStart=%s/bin/escaled --group docker -H unix:///run/escale/escale.sock -H unix:///var/run/docker.sock\n' "$PREFIX" >docker.conf.tmp
	install -D -m 644 docker.conf.tmp "$unitdir/escale.service.d/docker.conf"
	rm docker.conf.tmp
	echo "  $unitdir/escale.service.d/docker.conf"
	printf 'g docker -\n' | install -D -m 644 /dev/stdin "$DESTDIR/usr/lib/sysusers.d/escale-docker.conf"
	if live; then getent group docker >/dev/null || groupadd --system docker; fi
}

do_uninstall() {
	systemd disable --now escale 2>/dev/null || true
	unlink_ours escale "$root/bin/docker"
	unlink_ours escale.service "$unitdir/docker.service"
	rm -f "$root"/bin/escale "$root"/bin/escaled "$unitdir/escale.service" "$unitdir/escale.service.d/docker.conf" \
		"$DESTDIR"/usr/lib/sysusers.d/escale.conf "$DESTDIR"/usr/lib/sysusers.d/escale-docker.conf "$DESTDIR"/usr/lib/tmpfiles.d/escale.conf
	for c in "${completions[@]}"; do rm -f "${c#*:}"; done
	rm -rf "$root/libexec/escale" "$root/share/doc/escale"
	rmdir "$unitdir/escale.service.d" 2>/dev/null || true
	systemd daemon-reload || true
	echo "removed; containers, images and volumes stay in /var/lib/escale, the configuration in /etc/escale"
}

case ${1-} in
install) do_install ;;
uninstall) do_uninstall ;;
*) echo "usage: install.sh install|uninstall" >&2; exit 2 ;;
esac
