"""What ranks are asked to do in these tests: functions of a module, since processes get them by name.

Each builds the same tiny model on every rank, spreads it, and gives back whole tensors as plain numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.tensor import DTensor

from posttrain.config.compute import Compute, Mesh
from posttrain.config.settings import OptimizerSettings, Schedule
from posttrain.config.stages import SFT
from posttrain.data.trees import collate
from posttrain.errors import NonFiniteError
from posttrain.models.adapters.kinds import add_adapter, is_fresh
from posttrain.models.folders.fingerprint import weights_fingerprint
from posttrain.models.folders.loading import load
from posttrain.models.reference import AdapterOffReference, LiveReference
from posttrain.models.reward.folders import load_reward_folder
from posttrain.models.sharding.mesh import Sharding, sharding_of
from posttrain.models.sharding.shards import local, whole
from posttrain.models.sharding.whole import gathered_copy, whole_tensors
from posttrain.models.sharding.wrap import park
from posttrain.models.tree.heads import ScoreModel, with_head
from posttrain.models.tree.logprobs import Policy
from posttrain.models.tree.model import TreeModel
from posttrain.models.tree.offloading import HostActivations, to_host
from posttrain.models.tree.value import ValueModel, value_head, value_model
from posttrain.runs.progress import Progress
from posttrain.training.optimizer import Optimizer
from posttrain.training.stages.policy import load_policy
from posttrain.types import PLAIN, Against, Batch, TokenTree, Wants
from tests.adapters import EVERY
from tests.families import VOCAB, family_model
from tests.fixtures import random_trees

CPU = torch.device("cpu")
RARE = 1.6
TREES = random_trees(9, vocab=VOCAB, branches=2, mask_probability=0.7, seed=5)


@dataclass(frozen=True)
class Scene:
    """Scene("llama", shard=2, replicate=2): which model, how it is spread, and on what it runs."""

    family: str = "llama"
    fields: dict[str, Any] = field(default_factory=dict)
    shard: int = 2
    replicate: int = 1
    adapter: str | None = None
    kind: str = "policy"
    path: str = "tree"
    dtype: torch.dtype = torch.float64
    autocast: torch.dtype | None = None
    gather: torch.dtype | None = None
    checkpointing: bool = False
    offloaded: bool = False
    parked: bool = False
    odd: str | None = None
    """Something that models of `transformers` may have: a matrix that two layers `share`, or `experts` that are called
    where a token chooses them."""
    wants: Wants = PLAIN

    @property
    def ranks(self) -> int:
        return self.shard * self.replicate


def chosen_by(scene: Scene, trees: Sequence[TokenTree] = TREES) -> list[int]:
    """How many tokens of each tree choose the second expert of a layer."""
    model = tree_model(scene, None)
    counts = []
    with torch.no_grad():
        for tree in trees:
            seen: list[int] = []
            hooks = [
                layer.mlp.register_forward_hook(
                    lambda _, inputs, out, seen=seen: seen.append(int((inputs[0][..., 0] > RARE).sum()))
                )
                for layer in model.transformer.model.layers
            ]
            model(collate([tree]), path="tree")
            for hook in hooks:
                hook.remove()
            counts.append(sum(seen))
    return counts


def sharding(scene: Scene) -> Sharding | None:
    found = sharding_of(Compute(mesh=Mesh(shard=scene.shard, replicate=scene.replicate)), CPU, None)
    return found if found is None or scene.gather is None else Sharding(found.mesh, scene.gather)


def plain_model(scene: Scene) -> Any:
    torch.manual_seed(0)
    model = family_model(scene.family, **scene.fields).to(scene.dtype)
    if scene.odd == "share":
        layers = model.model.layers
        layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    if scene.odd == "experts":
        for layer in model.model.layers:
            layer.mlp = Choosing(layer.mlp)
    if scene.kind in ("score", "value"):
        model = with_head(model, init="normal")
    if scene.adapter is not None:
        model = add_adapter(model, EVERY[scene.adapter], seed=3)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model = model.to(scene.dtype)
    return model


class Choosing(torch.nn.Module):
    """Two experts, each called with the tokens that chose it, and not at all where none did."""

    def __init__(self, mlp: Any):
        super().__init__()
        self.experts = torch.nn.ModuleList([mlp, copy.deepcopy(mlp)])

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        flat = states.reshape(-1, states.shape[-1])
        # Few tokens choose the second: of some ranks' rows none does.
        second = flat[:, 0] > RARE
        out = torch.zeros_like(flat)
        for expert, chosen in zip(self.experts, (~second, second), strict=True):
            if bool(chosen.any()):
                out = out.index_add(0, chosen.nonzero()[:, 0], expert(flat[chosen]))
        return out.view_as(states)


def tree_model(scene: Scene, spread: Sharding | None) -> TreeModel:
    model = plain_model(scene)
    if scene.parked and spread is not None:
        park(model, spread)
        spread = spread if scene.replicate > 1 else None  # one mesh of all ranks is read off the weights
    kind: Callable[..., TreeModel] = {"policy": Policy, "score": ScoreModel, "value": ValueModel}[scene.kind]
    made = kind(
        model, scene.path, autocast=scene.autocast, activation_checkpointing=scene.checkpointing, sharding=spread
    )
    if scene.offloaded:
        made.activations = HostActivations(model, torch.device("cpu"), least=1)
    return made


def bytes_away(scene: Scene) -> int:
    """What leaves the card in a pass over the same trees on each rank."""
    sent: list[int] = []

    def away(bytes_n: torch.Tensor) -> torch.Tensor:
        sent.append(bytes_n.numel())
        return to_host(bytes_n)

    model = tree_model(scene, sharding(scene) if dist.is_initialized() else None)
    values_of(model, TREES, scene.wants)  # the path is proven before it is measured
    model.activations = HostActivations(model.model, torch.device("cpu"), away=away, least=1)
    loss_of(model, TREES, scene.wants).backward()
    return sum(sent)


def values_of(model: TreeModel, trees: Sequence[TokenTree], wants: Wants) -> torch.Tensor:
    """One number per place that a loss would see, each with a weight that depends on its tree alone."""
    out = model(collate(trees), wants)
    if isinstance(model, Policy):
        found = out.logprobs_N if out.entropy_N is None else out.logprobs_N + 0.3 * out.entropy_N
    else:
        found = out if isinstance(model, ValueModel) else out.scores_BH.flatten()
    return found


def loss_of(model: TreeModel, trees: Sequence[TokenTree], wants: Wants) -> torch.Tensor:
    values = values_of(model, trees, wants)
    return (values * values.detach().abs().sqrt()).sum() / 100  # no two places weigh the same


@dataclass
class Answer:
    values: list[list[float]]
    """Of each tree."""
    gradients: dict[str, torch.Tensor]
    path: str


def answer(scene: Scene, trees: Sequence[TokenTree] = TREES) -> Answer:
    """One step: each rank takes its trees in micro-batches of its own, as many as the others."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model = tree_model(scene, sharding(scene) if size > 1 else None)
    mine = list(trees)[rank::size]
    micro = [mine[:1], mine[1:]] if size > 1 else [[tree] for tree in trees]
    # Ranks have another number of trees: who has none left runs one of the step for nothing.
    micro = [part or [trees[0]] for part in micro]
    for number, part in enumerate(micro):
        loss = loss_of(model, part, scene.wants)
        (loss * (0 if number and len(mine) == 1 else 1)).backward()
    values = []
    with torch.no_grad():
        for tree in trees:
            values.append(values_of(model, [tree], scene.wants).tolist())
    gradients = {
        name: whole(p.grad) for name, p in model.model.named_parameters() if p.requires_grad and p.grad is not None
    }
    return Answer(values, gradients, model.path)


# ---------------------------------------------------------------- what a step does with it


def trained(scene: Scene, clip: float | None = 0.5, steps: int = 3) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Some steps of AdamW: the norms before clipping, and the weights after it."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model = tree_model(scene, sharding(scene) if size > 1 else None)
    model.prove(TREES)  # leaves the head gathered or not, as it likes: the optimizer must see shards
    with torch.no_grad():
        model(collate(TREES[:1]), Wants(logprobs=False, distributions_at=torch.tensor([0])))
    model.settle()
    settings = OptimizerSettings(clip_norm=clip, weight_decay=0.1)
    optimizer = Optimizer(model.model, settings, learning_rate=1e-2, schedule=Schedule(), steps=steps)
    norms = []
    for step in range(steps):
        loss_of(model, TREES[rank::size] if size > 1 else TREES, scene.wants).backward()
        norms.append(optimizer.step(step).grad_norm)
    assert set(optimizer.state_dict()) == {name for name, _ in optimizer.named}
    return norms, {name: tensor.clone() for name, tensor in whole_tensors(model.model)}


def refused(scene: Scene, bad: str) -> tuple[str, tuple[str, ...], dict[str, torch.Tensor]]:
    """A gradient that is not finite on rank 1 alone, and only in the rows that rank 1 has."""
    model = tree_model(scene, sharding(scene))
    optimizer = Optimizer(model.model, OptimizerSettings(), learning_rate=1e-2, schedule=Schedule(), steps=2)
    before = {name: tensor.clone() for name, tensor in whole_tensors(model.model)}
    loss_of(model, TREES[:2], scene.wants).backward()
    gradient = dict(optimizer.named)[bad].grad
    assert isinstance(gradient, DTensor)
    if dist.get_rank() == 1:
        gradient.to_local()[-1] = float("nan")
    try:
        optimizer.step(0, ["row 1"])
    except NonFiniteError as error:
        after = dict(whole_tensors(model.model))
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        return str(error), tuple(error.tensors), {}
    raise AssertionError("the step was taken")


# ---------------------------------------------------------------- other models beside it


def beside(scene: Scene) -> dict[str, torch.Tensor]:
    """What a reference, a value model, a divergence and a shared value head give, on one batch for all ranks."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    policy = tree_model(scene, sharding(scene) if size > 1 else None)
    assert isinstance(policy, Policy)
    batch, index_S = collate(TREES[:3]), torch.tensor([0, 2, 5])
    found = {"start": policy(batch).logprobs_N.detach()}
    live = LiveReference(policy)
    critic = value_model(policy)
    with torch.no_grad():
        critic.transformer.score.weight.add_(0.3)
    head = value_head(policy).to(policy.dtype)
    torch.nn.init.constant_(head.weight, 0.1)
    optimizer = Optimizer(policy.model, OptimizerSettings(), learning_rate=3e-2, schedule=Schedule(), steps=2)
    # Every rank has the same rows. Divided before, for Adam's epsilon tells a gradient from twice as much.
    (loss_of(policy, TREES[:2], scene.wants) / size).backward()
    optimizer.step(0)
    found["reference after a step"] = live.logprobs(batch)
    found["policy after a step"] = policy(batch).logprobs_N.detach()
    found["exact KL"] = policy.exact_kl(live, batch, index_S).reverse_S
    if scene.adapter is not None:
        found["adapter off"] = AdapterOff(policy).logprobs(batch)
    found["values"] = critic(batch).detach()
    critic(batch).square().sum().backward()
    found |= {f"critic {name}": p for name, p in _gradients(critic.model, size).items()}
    out = policy(batch, Wants(value_head=head, against=Against(live, 0.5), entropy=True, routing=True))
    found |= {"shared values": out.values_N.detach(), "divergence": out.divergence_N.detach()}
    (out.values_N.sum() + out.divergence_N.square().sum() + out.entropy_N.sum()).backward()
    found |= {f"policy {name}": p for name, p in _gradients(policy.model, size).items()}
    found["head"] = head.weight.grad.clone()
    return found


def _gradients(model: torch.nn.Module, size: int) -> dict[str, torch.Tensor]:
    """Per rank: they all had the same batch."""
    return {name: whole(p.grad) / size for name, p in model.named_parameters() if p.grad is not None}


class AdapterOff(AdapterOffReference):
    """Of an adapter that has learnt something, which the real one refuses."""

    def __init__(self, policy: Policy):
        self._policy = policy


# ---------------------------------------------------------------- whole again


def read_whole(scene: Scene) -> tuple[str, list[tuple[str, torch.Tensor]], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fingerprint, tensors in their order, a plain copy's logits in fp32, and log-probs before and after."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    policy = tree_model(scene, sharding(scene) if size > 1 else None)
    batch = collate(TREES[:3])
    before = policy(batch).logprobs_N.detach()  # the head stays gathered: reading has to free it
    tensors = [(name, tensor.clone()) for name, tensor in whole_tensors(policy.model)]
    copy = gathered_copy(policy.model, torch.float32)
    assert not any(isinstance(p, DTensor) or p.requires_grad for p in copy.parameters())
    with torch.no_grad():
        logits = copy(input_ids=torch.tensor([[3, 5, 8, 9]]), use_cache=False).logits
    loss_of(policy, TREES[:2], scene.wants).backward()  # the hooks are where they were
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)
    after = policy(batch).logprobs_N.detach()
    return weights_fingerprint(policy.model), tensors, logits, before, after


# ---------------------------------------------------------------- proofs


def proven(scene: Scene, fault: str | None) -> tuple[str, list[str], bool]:
    """The path that holds, why another does not, and whether the step's gradients are as they were."""
    rank, size = dist.get_rank(), dist.get_world_size()
    policy = tree_model(scene, sharding(scene))
    if fault == "gradient":
        _halve_gradient_of_tree(policy)
    policy.path = "padded"
    loss_of(policy, TREES[rank::size], scene.wants).backward()
    kept = {name: whole(p.grad).clone() for name, p in policy.model.named_parameters()}
    policy.path = "tree"
    # Each rank has other rows, of other lengths: they agree on those of the longest.
    lengths = random_trees(size, vocab=VOCAB, branches=2, branch_tokens=(10 * (rank + 1), 10 * (rank + 1)), seed=rank)
    policy(collate(lengths))
    # Now one rank's rows are covered by that proof, and the other's are not: both have to prove again.
    long = random_trees(1, vocab=VOCAB, branches=2, branch_tokens=(110, 110) if rank else (4, 4), seed=9)
    policy(collate(long))
    assert fault is not None or policy.paths.reach["tree"].tokens >= 110
    policy.settle()
    same = all(torch.equal(kept[name], whole(p.grad)) for name, p in policy.model.named_parameters())
    return policy.path, policy.paths.reasons(policy), same


def _halve_gradient_of_tree(policy: TreeModel) -> None:
    """Values stay right, and the gradient of the tree path is wrong: what a kernel with a broken backward does."""
    hidden = policy._tree_hidden

    def broken(batch: Batch) -> torch.Tensor:
        states = hidden(batch)
        return states * 0.5 + states.detach() * 0.5

    policy._tree_hidden = broken  # type: ignore[method-assign]


def memory_of_reference(scene: Scene) -> tuple[int, int]:
    """Bytes of a live reference's shards that are the policy's own, and those that are not."""
    policy = tree_model(scene, sharding(scene))
    assert isinstance(policy, Policy)
    live = LiveReference(policy)
    live.logprobs(collate(TREES[:2]))  # what FSDP2 does to shards at the first pass is done
    policy(collate(TREES[:2]))
    policy.settle()
    own = {local(p).untyped_storage().data_ptr() for p in policy.parameters()}
    sizes = {True: 0, False: 0}
    for parameter in live._policy.parameters():
        storage = local(parameter).untyped_storage()
        sizes[storage.data_ptr() in own] += storage.nbytes()
    return sizes[True], sizes[False]


# ---------------------------------------------------------------- from a folder


@dataclass
class Loaded:
    fingerprint: str
    tensors: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    settings: tuple[dict[str, Any], dict[str, Any]]
    fresh: bool
    notices: tuple[str, ...]
    logprobs_N: torch.Tensor


def loaded_in_parts(folder: Path, adapter: str | None, scene: Scene) -> Loaded:
    loaded = load(folder, adapter=None if adapter is None else EVERY[adapter], sharding=sharding(scene))
    model = loaded.model
    fresh = is_fresh(model)
    tensors = {name: tensor.clone() for name, tensor in whole_tensors(model)}
    policy = Policy(model, sharding=loaded.sharding)
    with torch.no_grad():
        logprobs_N = policy(collate(TREES[:3])).logprobs_N
    plain = policy.transformer
    settings = (plain.config.to_dict(), plain.generation_config.to_dict())
    return Loaded(loaded.fingerprint, tensors, dict(model.named_buffers()), settings, fresh, loaded.notices, logprobs_N)


def reward_in_parts(folder: Path) -> tuple[str, bool]:
    loaded = load_reward_folder(folder, sharding=sharding(Scene())).loaded
    return loaded.fingerprint, all(isinstance(p, DTensor) for p in loaded.model.parameters())


def peak_of_loading(folder: Path, small: Path) -> int:
    """Bytes by which the largest resident set grew; a small load before it has imported and allocated what any does."""
    spread = sharding(Scene(shard=dist.get_world_size()))
    load(small, sharding=spread)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the high-water mark back to now
    before = _resident("VmRSS:")
    load(folder, sharding=spread)
    return _resident("VmHWM:") - before


def _resident(field_name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field_name))) * 1024


# ---------------------------------------------------------------- a stage


def stage_in_parts(folder: Path, adapter: str) -> list[torch.Tensor]:
    """The policy of a stage, trained a step, then taken by a second stage as it is in memory: log-probs of each."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    stage = SFT(compute={"mesh": {"shard": size}}, adapter={"kind": adapter})
    start: Any = folder
    found = []
    for _ in range(2):
        loaded = load_policy(stage, start, CPU, 0, Progress())
        policy = Policy(loaded.model, sharding=loaded.sharding)
        (loss_of(policy, TREES[:2], PLAIN) / size).backward()  # every rank has the same rows
        Optimizer(policy.model, OptimizerSettings(), learning_rate=1e-2, schedule=Schedule(), steps=2).step(0)
        with torch.no_grad():
            found.append(policy(collate(TREES[:3])).logprobs_N)
        start = loaded
    return found
