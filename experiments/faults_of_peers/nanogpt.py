"""nanoGPT's method: torch.save of model, optimizer and iter_num in place; a resume loads it.

Written for this study after karpathy/nanoGPT, train.py: one ckpt.pt, random batches, no state of
random generators.
"""

import torch

from experiments.faults_of_peers import common


def main() -> None:
    """Train."""
    common.quiet()
    given = common.settings()
    model = common.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr)
    path, step = given.directory / "ckpt.pt", 0
    if given.resume:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["iter_num"]
    data = common.blocks(given.directory.parent / "tokens.bin")
    torch.manual_seed(common.SEED)
    model.train()
    while step < common.STEPS:
        for group in optimizer.param_groups:  # as nanoGPT does: the rate is set in each step
            group["lr"] = given.lr
        picks = torch.randint(len(data), (common.BATCH,)).tolist()
        inputs = torch.stack([data[i][0] for i in picks])
        targets = torch.stack([data[i][1] for i in picks])
        logits = model(inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        common.note(given, step, loss.item())
        if step % common.SAVE_EVERY == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "iter_num": step, "lr": optimizer.param_groups[0]["lr"]}, path)
    common.finish(given.directory, model.state_dict())


if __name__ == "__main__":
    main()
