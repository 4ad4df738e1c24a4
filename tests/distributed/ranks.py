"""Ranks of one gloo group, each in a process of its own: forked, so that nothing is imported again."""

import multiprocessing
import os
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch._dynamo  # DDP imports it when the first model is wrapped: here once, instead of in every rank
import torch.distributed as dist

SECONDS = 120  # other processes may share the machine


def play(ranks, scene, *arguments):
    """`scene(rank, *arguments)` on each rank of a group; what each returned, by rank."""
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        ends = [fork.Pipe(duplex=False) for _ in range(ranks)]
        children = [
            fork.Process(target=_child, args=(rank, ranks, Path(folder) / "store", ends[rank][1], scene, arguments))
            for rank in range(ranks)
        ]
        for child in children:
            child.start()
        try:
            answers = [hear.recv() if hear.poll(2 * SECONDS) else "no answer" for hear, _ in ends]
        finally:
            for child in children:
                child.kill()
                child.join()
            for pair in ends:
                for end in pair:
                    end.close()
    for answer in answers:
        assert isinstance(answer, tuple), answer
    return [answer[0] for answer in answers]


def _child(rank, ranks, store, say, scene, arguments):
    try:
        torch.set_num_threads(1)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(str(store), ranks),
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=SECONDS),
        )
        answer = (scene(rank, *arguments),)
        dist.barrier()
        say.send(answer)
        dist.destroy_process_group()
    except BaseException:
        say.send(f"rank {rank}:\n{traceback.format_exc()}")
    os._exit(0)
