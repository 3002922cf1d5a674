"""Debian's python3-docker against an engine: what scripts and tools built on
docker-py do with containers, images, volumes and events, and what they expect.

    DOCKER_HOST=unix://... IMAGE=name:tag python3 docker_py.py -v

IMAGE is a busybox root file system.
"""

import datetime
import io
import os
import socket
import struct
import tarfile
import tempfile
import threading
import time
import unittest

import docker
from docker.errors import APIError, ContainerError, ImageNotFound, NotFound
from docker.types import LogConfig, Mount, Ulimit

IMAGE = os.environ["IMAGE"]
PREFIX = "dpy%d-" % os.getpid()


def untar(chunks):
    return tarfile.open(fileobj=io.BytesIO(b"".join(chunks)))


def tar_of(**files):
    buf = io.BytesIO()
    with tarfile.open(fileobj=buf, mode="w") as t:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), 0o640, 1700000000
            t.addfile(info, io.BytesIO(data))
    return buf.getvalue()


def read_until(sock, what, limit=10):
    """Reads a raw socket until `what` came or it ended."""
    raw = getattr(sock, "_sock", sock)
    raw.settimeout(limit)
    got = b""
    while what not in got:
        part = raw.recv(4096)
        if not part:
            break
        got += part
    return got


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.client = docker.from_env(timeout=60)
        cls.api = cls.client.api

    @classmethod
    def tearDownClass(cls):
        cls.client.close()

    def tearDown(self):
        for c in self.client.containers.list(all=True):
            if c.name.startswith(PREFIX):
                c.remove(force=True, v=True)

    def name(self):
        return PREFIX + self.id().rsplit(".", 1)[1].replace("_", "-")

    def run_(self, *cmd, **kw):
        kw.setdefault("name", self.name())
        kw.setdefault("detach", True)
        return self.client.containers.run(IMAGE, list(cmd), **kw)


class Life(Case):
    def test_run_returns_output(self):
        out = self.client.containers.run(IMAGE, ["echo", "hi"], remove=True, name=self.name())
        self.assertEqual(out, b"hi\n")
        self.assertRaises(NotFound, self.client.containers.get, self.name())

    def test_run_separates_streams(self):
        script = "echo out; echo err >&2"
        self.assertEqual(self.client.containers.run(IMAGE, ["sh", "-c", script], name=self.name() + "a"), b"out\n")
        both = self.client.containers.run(IMAGE, ["sh", "-c", script], stderr=True, name=self.name() + "b")
        self.assertEqual(sorted(both.splitlines()), [b"err", b"out"])

    def test_run_fails_with_the_exit_code(self):
        with self.assertRaises(ContainerError) as e:
            self.client.containers.run(IMAGE, ["sh", "-c", "echo no >&2; exit 3"], remove=True, name=self.name())
        self.assertEqual(e.exception.exit_status, 3)
        self.assertIn(b"no", e.exception.stderr)

    def test_run_without_such_a_program(self):
        with self.assertRaises(APIError) as e:
            self.run_("/no/such/program")
        self.assertEqual(e.exception.response.status_code, 400)

    def test_run_without_such_an_image(self):
        with self.assertRaises((ImageNotFound, APIError)):
            self.client.containers.create("nothing-of-that-name:1")

    def test_detached_life(self):
        c = self.run_("sleep", "300", labels={"a": "b"}, environment={"X": "1"}, hostname="web", working_dir="/tmp")
        self.assertEqual(c.status, "created")
        c.reload()
        self.assertEqual(c.status, "running")
        self.assertEqual(c.labels, {"a": "b"})
        self.assertEqual(c.attrs["Config"]["Hostname"], "web")
        self.assertIn("X=1", c.attrs["Config"]["Env"])
        self.assertTrue(c.attrs["NetworkSettings"]["Networks"]["bridge"]["IPAddress"])
        c.pause()
        c.reload()
        self.assertEqual(c.status, "paused")
        c.unpause()
        c.restart(timeout=0)
        c.reload()
        self.assertEqual(c.status, "running")
        c.rename(self.name() + "2")
        self.assertEqual(self.client.containers.get(self.name() + "2").id, c.id)
        c.stop(timeout=0)
        self.assertEqual(c.wait()["StatusCode"], 137)
        c.start()
        c.kill(signal="SIGKILL")
        self.assertEqual(c.wait(timeout=20)["StatusCode"], 137)
        c.remove()
        self.assertRaises(NotFound, c.reload)

    def test_wait_conditions(self):
        c = self.client.containers.create(IMAGE, ["sh", "-c", "exit 7"], name=self.name())
        got = []
        waiter = threading.Thread(target=lambda: got.append(c.wait(condition="next-exit")))
        waiter.start()
        time.sleep(0.3)
        c.start()
        waiter.join(30)
        self.assertEqual(got and got[0]["StatusCode"], 7)
        self.assertEqual(c.wait()["StatusCode"], 7)

    def test_list_and_filters(self):
        a = self.run_("sleep", "300", labels={PREFIX: "x"})
        b = self.client.containers.create(IMAGE, ["true"], name=self.name() + "b", labels={PREFIX: "y"})
        ids = lambda **kw: {c.id for c in self.client.containers.list(**kw)}
        self.assertIn(a.id, ids())
        self.assertNotIn(b.id, ids())
        self.assertEqual(ids(all=True, filters={"label": PREFIX}), {a.id, b.id})
        self.assertEqual(ids(all=True, filters={"label": [PREFIX + "=y"]}), {b.id})
        self.assertEqual(ids(all=True, filters={"status": "created", "label": PREFIX}), {b.id})
        self.assertEqual(ids(filters={"name": a.name}), {a.id})
        self.assertEqual(ids(all=True, limit=1, filters={"label": PREFIX}), {b.id})
        self.assertEqual(ids(filters={"ancestor": IMAGE, "label": PREFIX}), {a.id})

    def test_resources_and_mounts(self):
        host = os.environ["SCRATCH"]
        c = self.run_(
            "sh", "-c", "cat /here/f; echo more >> /here/f; df /t | tail -1; ulimit -n; id -u; exit 0",
            mem_limit="64m", nano_cpus=500000000, pids_limit=50, cap_drop=["ALL"], read_only=True, user="1000",
            tmpfs={"/t": "size=1m"}, ulimits=[Ulimit(name="nofile", soft=99, hard=100)], restart_policy={"Name": "on-failure", "MaximumRetryCount": 2},
            mounts=[Mount("/ro", host, type="bind", read_only=True)], volumes={host: {"bind": "/here", "mode": "rw"}},
            log_config=LogConfig(type=LogConfig.types.JSON, config={"max-size": "1m"}), extra_hosts={"db": "10.1.2.3"}, init=False,
        )
        self.assertEqual(c.wait()["StatusCode"], 0)
        lines = c.logs().decode().split("\n")
        self.assertEqual(lines[0], "from the host")
        self.assertIn("1024", lines[1])
        self.assertEqual(lines[2:4], ["99", "1000"])
        with open(os.path.join(host, "f")) as f:
            self.assertEqual(f.read(), "from the host\nmore\n")
        hc = c.attrs["HostConfig"]
        self.assertEqual((hc["Memory"], hc["NanoCpus"], hc["PidsLimit"]), (64 << 20, 500000000, 50))

    def test_ports(self):
        c = self.run_("sh", "-c", "echo served > /tmp/index.html; exec httpd -f -p 80 -h /tmp", ports={"80/tcp": ("127.0.0.1", None)})
        c.reload()
        bound = c.ports["80/tcp"][0]
        self.assertEqual(bound["HostIp"], "127.0.0.1")
        self.assertEqual(self.api.port(c.id, 80)[0]["HostPort"], bound["HostPort"])
        for _ in range(50):
            try:
                with socket.create_connection(("127.0.0.1", int(bound["HostPort"])), timeout=5) as s:
                    s.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    got = b"".join(iter(lambda: s.recv(4096), b""))
                break
            except OSError:
                time.sleep(0.1)
        self.assertIn(b"served", got)

    def test_update(self):
        c = self.run_("sleep", "300", mem_limit="64m")
        c.update(mem_limit="32m", memswap_limit="64m", cpu_shares=512)
        c.reload()
        self.assertEqual(c.attrs["HostConfig"]["Memory"], 32 << 20)
        self.assertEqual(c.attrs["HostConfig"]["CpuShares"], 512)

    def test_name_in_use(self):
        self.run_("sleep", "300")
        with self.assertRaises(APIError) as e:
            self.run_("true")
        self.assertEqual(e.exception.response.status_code, 409)
        self.assertIn("is already in use by container", e.exception.explanation)

    def test_prune(self):
        c = self.run_("true", labels={PREFIX + "p": "1"})
        c.wait()
        pruned = self.client.containers.prune(filters={"label": PREFIX + "p"})
        self.assertEqual(pruned["ContainersDeleted"], [c.id])


class Streams(Case):
    def test_logs(self):
        c = self.run_("sh", "-c", "for i in 1 2 3; do echo o$i; echo e$i >&2; sleep 0.05; done")
        c.wait()
        self.assertEqual(c.logs(stdout=True, stderr=False), b"o1\no2\no3\n")
        self.assertEqual(c.logs(stdout=False, stderr=True), b"e1\ne2\ne3\n")
        self.assertEqual(c.logs(tail=1, stderr=False), b"o3\n")
        stamped = c.logs(timestamps=True, stderr=False).splitlines()[0]
        datetime.datetime.strptime(stamped.split()[0][:19].decode(), "%Y-%m-%dT%H:%M:%S")
        self.assertEqual(c.logs(since=int(time.time()) + 100), b"")
        self.assertEqual(c.logs(until=1000), b"")

    def test_logs_follow(self):
        c = self.run_("sh", "-c", "echo first; sleep 0.4; echo last")
        begun = time.time()
        seen = []
        for chunk in c.logs(stream=True, follow=True):
            seen.append((chunk, time.time() - begun))
        self.assertEqual(b"".join(s for s, _ in seen), b"first\nlast\n")
        self.assertGreater(seen[-1][1] - seen[0][1], 0.2, "all came at once")

    def test_attach_stream(self):
        c = self.client.containers.create(IMAGE, ["sh", "-c", "echo one; echo two >&2; sleep 0.1; echo three"], name=self.name())
        stream = c.attach(stream=True, logs=True, stdout=True, stderr=True, demux=True)
        c.start()
        out, err = b"", b""
        for o, e in stream:
            out, err = out + (o or b""), err + (e or b"")
        # To attach to what has ended is left out: docker-py loses what comes in one
        # packet with the answer's head, from dockerd as well.
        self.assertEqual((out, err), (b"one\nthree\n", b"two\n"))

    def test_attach_socket_stdin(self):
        c = self.client.containers.create(IMAGE, ["sh", "-c", "cat; echo end"], name=self.name(), stdin_open=True)
        s = c.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
        c.start()
        raw = getattr(s, "_sock", s)
        raw.sendall(b"through a socket\n")
        raw.shutdown(socket.SHUT_WR)
        self.assertIn(b"through a socket\n", read_until(s, b"through a socket\n"))
        s.close()
        self.assertEqual(c.wait(timeout=20)["StatusCode"], 0)  # docker-py asks for StdinOnce
        self.assertEqual(c.logs(), b"through a socket\nend\n")

    def test_tty(self):
        c = self.run_("sh", tty=True, stdin_open=True)
        c.resize(height=33, width=99)
        s = c.attach_socket(params={"stdin": 1, "stdout": 1, "stream": 1})
        raw = getattr(s, "_sock", s)
        raw.sendall(b"stty size; exit 5\n")
        self.assertIn(b"33 99", read_until(s, b"33 99"))
        self.assertEqual(c.wait(timeout=20)["StatusCode"], 5)
        s.close()

    def test_exec_run(self):
        c = self.run_("sleep", "300")
        code, out = c.exec_run(["sh", "-c", "echo $A; pwd; id -u; exit 4"], environment={"A": "b"}, workdir="/tmp", user="33")
        self.assertEqual((code, out), (4, b"b\n/tmp\n33\n"))
        self.assertEqual(c.exec_run("echo a string is split").output, b"a string is split\n")

    def test_exec_run_stream(self):
        c = self.run_("sleep", "300")
        code, chunks = c.exec_run(["sh", "-c", "echo 1; sleep 0.2; echo 2"], stream=True)
        self.assertIsNone(code)
        self.assertEqual(b"".join(chunks), b"1\n2\n")

    def test_exec_run_demux(self):
        c = self.run_("sleep", "300")
        code, (out, err) = c.exec_run(["sh", "-c", "echo o; echo e >&2"], demux=True)
        self.assertEqual((code, out, err), (0, b"o\n", b"e\n"))

    def test_exec_run_socket(self):
        c = self.run_("sleep", "300")
        made = self.api.exec_create(c.id, ["cat"], stdin=True)
        s = self.api.exec_start(made["Id"], socket=True)
        raw = getattr(s, "_sock", s)
        raw.sendall(b"to and fro\n")
        got = read_until(s, b"to and fro\n")
        self.assertEqual(got[:1], b"\x01")
        self.assertEqual(struct.unpack(">I", got[4:8])[0], len(b"to and fro\n"))
        self.assertTrue(self.api.exec_inspect(made["Id"])["Running"])
        raw.shutdown(socket.SHUT_WR)
        for _ in range(100):
            how = self.api.exec_inspect(made["Id"])
            if not how["Running"]:
                break
            time.sleep(0.05)
        self.assertEqual(how["ExitCode"], 0)
        s.close()

    def test_exec_run_tty_and_detached(self):
        c = self.run_("sleep", "300")
        self.assertEqual(c.exec_run("tty", tty=True).output.strip()[:8], b"/dev/pts")
        c.exec_run(["sh", "-c", "echo done > /tmp/mark"], detach=True)
        for _ in range(100):
            if c.exec_run("cat /tmp/mark").output == b"done\n":
                return
            time.sleep(0.05)
        self.fail("the detached exec did not run")


class Watching(Case):
    def test_stats(self):
        c = self.run_("sh", "-c", "while :; do :; done", mem_limit="64m")
        once = c.stats(stream=False)
        self.assertEqual(once["memory_stats"]["limit"], 64 << 20)
        self.assertGreater(once["cpu_stats"]["cpu_usage"]["total_usage"], 0)
        stream = c.stats(stream=True, decode=True)
        first, second = next(stream), next(stream)
        self.assertGreater(second["cpu_stats"]["cpu_usage"]["total_usage"], first["cpu_stats"]["cpu_usage"]["total_usage"])
        self.assertIn("eth0", second["networks"])

    def test_top(self):
        c = self.run_("sleep", "301")
        top = c.top()
        self.assertIn("sleep 301", [p[top["Titles"].index("CMD")] for p in top["Processes"]])
        self.assertEqual(c.top(ps_args="-o pid,comm")["Titles"], ["PID", "COMMAND"])

    def test_events(self):
        since = int(time.time()) - 1
        stream = self.client.events(decode=True, filters={"type": "container"}, since=since)
        c = self.run_("true")
        c.wait()
        c.remove()
        seen = []
        for e in stream:
            if e["Actor"]["ID"] != c.id:
                continue
            self.assertEqual(e["Actor"]["Attributes"]["name"], self.name())
            seen.append(e["Action"])
            if e["Action"] == "destroy":
                break
        stream.close()
        self.assertEqual([a for a in seen if a in ("create", "start", "die", "destroy")], ["create", "start", "die", "destroy"])

    def test_engine(self):
        self.assertTrue(self.client.ping())
        version = self.client.version()
        self.assertEqual((version["Os"], bool(version["ApiVersion"])), ("linux", True))
        info = self.client.info()
        self.assertGreater(info["NCPU"], 0)
        self.assertEqual(info["OSType"], "linux")

    def test_disk_and_networks(self):
        c = self.run_("sleep", "300")
        old = docker.from_env(version="1.44", timeout=60)
        for client in old, self.client:  # API 1.52 has other fields, too, which docker-py knows nothing of
            df = client.df()
            self.assertIn(c.id, [x["Id"] for x in df["Containers"]])
            self.assertGreater(df["LayersSize"], 0)
        old.close()
        nets = {n.name: n for n in self.client.networks.list()}
        self.assertTrue({"bridge", "host", "none"} <= set(nets))
        self.assertEqual(nets["bridge"].attrs["Driver"], "bridge")


class Files(Case):
    def test_archive_both_ways(self):
        c = self.run_("sleep", "300")
        self.assertTrue(c.put_archive("/tmp", tar_of(a=b"one", b=b"two" * 1000)))
        code, out = c.exec_run(["sh", "-c", "cat /tmp/a; stat -c ' %a %Y' /tmp/a; wc -c < /tmp/b"])
        self.assertEqual((code, out), (0, b"one 640 1700000000\n3000\n"))
        chunks, stat = c.get_archive("/tmp/b")
        self.assertEqual((stat["name"], stat["size"]), ("b", 3000))
        self.assertEqual(untar(chunks).extractfile("b").read(), b"two" * 1000)
        self.assertRaises(NotFound, c.get_archive, "/tmp/nothing")
        self.assertRaises(NotFound, c.put_archive, "/nowhere", tar_of(a=b""))

    def test_archive_of_a_stopped_one(self):
        c = self.client.containers.create(IMAGE, ["cat", "/srv/new"], name=self.name())
        c.put_archive("/srv", tar_of(new=b"put before the start\n"))
        c.start()
        c.wait()
        self.assertEqual(c.logs(), b"put before the start\n")
        self.assertEqual(untar(c.get_archive("/srv/new")[0]).extractfile("new").read(), b"put before the start\n")

    def test_diff(self):
        c = self.run_("sh", "-c", "echo x > /srv/added; rm /srv/notexec; echo y >> /etc/group")
        c.wait()
        changes = {d["Path"]: d["Kind"] for d in c.diff()}
        self.assertEqual((changes["/srv/added"], changes["/srv/notexec"], changes["/etc/group"]), (1, 2, 0))

    def test_commit(self):
        c = self.run_("sh", "-c", "echo committed > /srv/c")
        c.wait()
        img = c.commit(repository=PREFIX + "commit", tag="1", message="why", author="who", changes="ENV K=v")
        try:
            out = self.client.containers.run(img.id, ["sh", "-c", "cat /srv/c; echo $K"], remove=True, name=self.name() + "2")
            self.assertEqual(out, b"committed\nv\n")
            self.assertEqual((img.attrs["Author"], img.history()[0]["Comment"]), ("who", "why"))
        finally:
            self.client.images.remove(PREFIX + "commit:1")

    def test_build(self):
        """A folder packed by Python's tarfile: times of its files have fractions, in headers of their own."""
        with tempfile.TemporaryDirectory() as d:
            with open(os.path.join(d, "Dockerfile"), "w") as f:
                f.write("FROM %s\nCOPY . /src\nRUN cat /src/data; echo wrong >&2\n" % IMAGE)
            with open(os.path.join(d, "data"), "w") as f:
                f.write("of the context\n")
            os.utime(os.path.join(d, "Dockerfile"), (1.5, 1.5))
            tag = PREFIX + "build:1"
            img, log = self.client.images.build(path=d, tag=tag, rm=True)
        try:
            said = [line["stream"] for line in log if "stream" in line]
            self.assertIn("\x1b[91mwrong\n\x1b[0m", said)
            self.assertIn("of the context\n", said)
            self.assertEqual(said[-1], "Successfully tagged %s\n" % tag)
            self.assertEqual(self.client.containers.run(tag, ["cat", "/src/data"], remove=True, name=self.name()), b"of the context\n")
        finally:
            self.client.images.remove(img.id, force=True)

    def test_volume_driver(self):
        """A driver that is not there matters to a container with a volume only."""
        kw = {"volume_driver": "nosuch", "detach": True}
        c = self.client.containers.create(IMAGE, ["true"], name=self.name(), **kw)
        self.assertEqual(c.attrs["HostConfig"]["VolumeDriver"], "nosuch")
        with self.assertRaises(APIError) as e:
            self.client.containers.create(IMAGE, ["true"], volumes=["vol:/d"], name=self.name() + "2", **kw)
        self.assertIn('create vol: error looking up volume plugin nosuch: plugin "nosuch" not found', e.exception.explanation)

    def test_volumes(self):
        v = self.client.volumes.create(PREFIX + "vol", labels={PREFIX: "v"})
        try:
            mounts = {v.name: {"bind": "/data", "mode": "rw"}}
            self.client.containers.run(IMAGE, ["sh", "-c", "echo kept > /data/f"], volumes=mounts, remove=True, name=self.name() + "w")
            out = self.client.containers.run(IMAGE, ["cat", "/data/f"], volumes=mounts, remove=True, name=self.name() + "r")
            self.assertEqual(out, b"kept\n")
            self.assertIn(v.name, [x.name for x in self.client.volumes.list(filters={"label": PREFIX})])
            self.assertEqual(self.client.volumes.get(v.name).attrs["Driver"], "local")
            user = self.run_("sleep", "300", volumes=mounts)
            with self.assertRaises(APIError) as e:
                v.remove()
            self.assertEqual(e.exception.response.status_code, 409)
            user.remove(force=True)
        finally:
            v.remove()
        self.assertRaises(NotFound, self.client.volumes.get, v.name)
        self.assertIn("SpaceReclaimed", self.client.volumes.prune(filters={"label": PREFIX + "none"}))

    def test_export_and_import(self):
        c = self.run_("sh", "-c", "echo exported > /srv/e")
        c.wait()
        data = b"".join(c.export())
        self.assertEqual(untar([data]).extractfile("srv/e").read(), b"exported\n")
        repo = PREFIX + "imported"
        self.api.import_image_from_data(data, repository=repo, tag="1")
        try:
            out = self.client.containers.run(repo + ":1", ["cat", "/srv/e"], remove=True, name=self.name() + "i")
            self.assertEqual(out, b"exported\n")
        finally:
            self.client.images.remove(repo + ":1")


class Images(Case):
    def test_images(self):
        img = self.client.images.get(IMAGE)
        self.assertIn(IMAGE, img.tags)
        self.assertIn(img.id, [i.id for i in self.client.images.list()])
        self.assertIn(img.id, [i.id for i in self.client.images.list(name=IMAGE)])
        repo = PREFIX + "copy"
        self.assertTrue(img.tag(repo, tag="1"))
        saved = b"".join(self.client.images.get(repo + ":1").save(named=repo + ":1"))
        self.client.images.remove(repo + ":1")
        self.assertRaises(ImageNotFound, self.client.images.get, repo + ":1")
        loaded = self.client.images.load(saved)
        try:
            self.assertEqual([i.id for i in loaded], [img.id])
            self.assertTrue(self.client.images.get(repo + ":1").history())
        finally:
            self.client.images.remove(repo + ":1")

    def test_image_in_use(self):
        repo = PREFIX + "used"
        self.client.images.get(IMAGE).tag(repo, tag="1")
        c = self.client.containers.create(repo + ":1", ["true"], name=self.name())
        self.client.images.remove(repo + ":1", force=True)
        c.remove()

    def test_image_prune(self):
        self.assertIn("SpaceReclaimed", self.client.images.prune(filters={"dangling": True}))


if __name__ == "__main__":
    unittest.main()
