"""What the engine is measured against, each in a process: ``python -m benchmarks.engine_peers KIND``.

``generate FOLDER TOKENS`` and ``static FOLDER TOKENS`` print tokens a second over 16 prompts; ``embed
FOLDER`` prints texts a second of the micro-batcher without a door, once for each line it reads; ``xllamacpp
FILE PORT`` serves.
"""

import json
import sys
import threading
import time

from benchmarks.engine_load import PROMPTS, TEXTS


def _model(folder: str):  # noqa: ANN202 - torch is not imported here
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in PROMPTS
    ]
    return model, tokenizer, prompts


def generate(folder: str, tokens: int, *, together: bool) -> float:
    import torch

    model, tokenizer, prompts = _model(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    groups = [prompts] if together else [[prompt] for prompt in prompts]
    options = {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens}
    with torch.inference_mode():
        model.generate(**tokenizer(prompts[:1], return_tensors="pt"), do_sample=False, max_new_tokens=4)
        begin = time.perf_counter()
        for group in groups:
            model.generate(**tokenizer(group, return_tensors="pt", padding=True), **options)
        return len(prompts) * tokens / (time.perf_counter() - begin)


def embed(folder: str) -> None:
    from uia_lab.engine.embeddings import EmbeddingEngine
    from uia_lab.engine.frames import Done, Load, Submit
    from uia_lab.engine.worker import cores

    ended = threading.Semaphore(0)
    engine = EmbeddingEngine(
        Load("transformers", folder, "minilm", 64, 256, "text-embedding"),
        lambda frame: ended.release() if isinstance(frame, Done) else None,
        cores(),
    )
    engine.submit(Submit("warm", "text-embedding", "minilm", TEXTS[:8]))
    ended.acquire()
    for _ in sys.stdin:
        begin = time.perf_counter()
        # As 32 clients that each wait for their answer.
        for number, text in enumerate(TEXTS):
            if number >= 32:
                ended.acquire()
            engine.submit(Submit(f"r{number}", "text-embedding", "minilm", text))
        for _ in range(min(32, len(TEXTS))):
            ended.acquire()
        print(json.dumps(len(TEXTS) / (time.perf_counter() - begin)), flush=True)


def xllamacpp(file: str, port: int) -> None:
    import xllamacpp as xlc

    parameters = xlc.CommonParams()
    parameters.model.path = file
    parameters.n_parallel = 16
    parameters.n_ctx = 16 * 1024
    parameters.warmup = False
    parameters.port = port
    parameters.hostnames = ["127.0.0.1"]
    server = xlc.Server(parameters)
    print(json.dumps({"listening": server is not None}), flush=True)
    threading.Event().wait()


def main() -> None:
    kind, place, *rest = sys.argv[1:]
    if kind == "xllamacpp":
        xllamacpp(place, int(rest[0]))
    elif kind == "embed":
        embed(place)
    else:
        print(json.dumps(generate(place, int(rest[0]), together=kind == "static")))


if __name__ == "__main__":
    main()
