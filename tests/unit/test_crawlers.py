import os
import threading
from pathlib import Path

from idcfs.config import KNOWN_CRAWLERS
from idcfs.mount.crawlers import NAME_BYTES, Crawlers


def own_name() -> str:
    return Path("/proc/self/comm").read_text().strip()


def in_thread(call: object) -> None:
    thread = threading.Thread(target=call)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_a_program_is_recognized_by_its_name() -> None:
    assert Crawlers([own_name()]).find(os.getpid()) == own_name()
    assert Crawlers(["another", own_name() + "x"]).find(os.getpid()) is None
    assert Crawlers(KNOWN_CRAWLERS).find(os.getpid()) is None
    assert Crawlers([]).find(os.getpid()) is None


def test_a_thread_with_its_own_name_is_recognized_by_the_name_of_its_program() -> None:
    found: list[str | None] = []
    crawlers = Crawlers([own_name()])

    def look() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("pool")
        found.append(crawlers.find(threading.get_native_id()))

    in_thread(look)
    assert found == [own_name()]


def test_a_process_whose_name_is_unknown_is_not_refused() -> None:
    crawlers = Crawlers(KNOWN_CRAWLERS)
    assert crawlers.find(0) is None
    assert crawlers.find(2**30) is None


def test_a_long_name_is_compared_as_far_as_the_kernel_keeps_it() -> None:
    name = "n" * 40
    found: list[str | None] = []

    def look() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)
        found.append(Crawlers([name]).find(threading.get_native_id()))

    in_thread(look)
    assert found == [name]
    assert len({known[:NAME_BYTES] for known in KNOWN_CRAWLERS}) > 5
