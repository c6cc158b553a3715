"""A real index, real mirrors (a folder and an S3 server over TCP), and mounts made by the real command."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from moto.server import ThreadedMotoServer

from idcfs.catalog.index import find_index
from idcfs.demo import write_demo_mirror
from tests.mounting import ORDINARY_USER, Commands, made_once, mirror_series

REAL_MIRROR = Path(__file__).parents[3] / "shared" / "data" / "mirror"


@pytest.fixture(scope="session")
def world_readable(shared: Path, worker_id: str) -> Path:
    """A folder of this process that an ordinary user can reach."""
    folder = shared / worker_id
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def catalogue_folder(shared: Path) -> Path:
    """The catalogue of the real index, built once for all mounts."""

    def build(folder: Path) -> None:
        commands = Commands(folder / "home")
        commands.home.mkdir(parents=True)
        cache = folder / "cache"
        with commands.mounted(folder / "idc", "--cache-dir", cache, "--mirror", str(folder)) as point:
            # Attributes too, so that no later test waits for them.
            (point / "nlst" / ".idc" / "info.json").read_bytes()
        for path in (cache / "catalogue").rglob("*"):
            # Other users' caches are given links to them.
            path.chmod(0o755 if path.is_dir() else 0o644)

    return made_once(shared / "built", build) / "cache" / "catalogue"


@pytest.fixture(scope="session")
def folder_mirror(shared: Path) -> Path:
    """The synthetic sample, and the real series where they are there."""

    def write(folder: Path) -> None:
        write_demo_mirror(folder, find_index().tables["index"])
        if REAL_MIRROR.is_dir():
            shutil.copytree(REAL_MIRROR, folder, dirs_exist_ok=True)

    return made_once(shared / "mirror", write)


@pytest.fixture(scope="session")
def index_of_the_mirror(shared: Path, folder_mirror: Path) -> Path:
    """The rows of the real index for the series that the mirror has; their catalogue is built in a second."""

    def write(folder: Path) -> None:
        folder.mkdir()
        there = pa.array(list(mirror_series(folder_mirror)))
        for name, path in find_index().tables.items():
            table = pq.read_table(path)
            if name == "index":
                table = table.filter(pc.is_in(table["crdc_series_uuid"], there))
                assert len(table) == len(there)
            pq.write_table(table, folder / path.name)

    return made_once(shared / "index", write)


@pytest.fixture(scope="session")
def s3_mirror(folder_mirror: Path) -> Iterator[str]:
    """The same objects on an S3 server of another project, over HTTP on loopback."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", config=Config(signature_version=UNSIGNED)
    )
    try:
        for bucket in {series.parent.name for series in mirror_series(folder_mirror).values()}:
            client.create_bucket(Bucket=bucket, ACL="public-read")
        for uuid, series in mirror_series(folder_mirror).items():
            for file in series.iterdir():
                body = file.read_bytes()
                client.put_object(Bucket=series.parent.name, Key=f"{uuid}/{file.name}", Body=body, ACL="public-read")
        yield endpoint
    finally:
        server.stop()


@pytest.fixture(params=["root", "ordinary user"])
def someone(request: pytest.FixtureRequest, world_readable: Path, tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """Whoever the tests run as, and an ordinary user."""
    home = world_readable / f"home-{tmp_path_factory.mktemp('user').name}"
    home.mkdir()
    if request.param == "root" or os.getuid() != 0:
        if request.param != "root":
            pytest.skip("the tests run as an ordinary user already")
        return Commands(home)
    os.chown(home, ORDINARY_USER, ORDINARY_USER)
    return Commands(home, ORDINARY_USER)


@pytest.fixture
def commands(world_readable: Path, tmp_path_factory: pytest.TempPathFactory, catalogue_folder: Path) -> Commands:
    """idcfs with a home and a cache of its own, the catalogue built."""
    home = world_readable / f"home-{tmp_path_factory.mktemp('user').name}"
    home.mkdir()
    return give_catalogue(Commands(home), catalogue_folder)


def give_catalogue(commands: Commands, catalogue: Path) -> Commands:
    """Put a copy of the built catalogue into the user's cache folder (links to its files: they do not change)."""
    target = commands.home / ".cache" / "idcfs" / "catalogue"
    # A lock that is a link would be the others' too.
    shutil.copytree(catalogue, target, copy_function=os.link, ignore=shutil.ignore_patterns("*.lock"))
    if commands.user is not None:
        for path in (commands.home / ".cache").rglob("*"):
            if path.is_dir():
                os.chown(path, commands.user, commands.user)
        os.chown(commands.home / ".cache", commands.user, commands.user)
    return commands
