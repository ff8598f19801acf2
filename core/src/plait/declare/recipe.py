"""The recipe: what to run, as data. TOML on disk, pydantic in memory; unknown keys are refused with the nearest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from plait.declare.options import Options
from plait.errors import BadInput, nearest

T = TypeVar("T", bound=BaseModel)


class Component(Options):
    """A data source or a model by name or import path, with its own options beside the name."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)
    name: str | None = Field(
        None, min_length=1, description="a registered name, or an import path package.module:function"
    )

    @property
    def options(self) -> dict[str, Any]:
        """The options beside the name."""
        return dict(self.model_extra or {})


class Train(Options):
    """How long, and in what portions."""

    epochs: int | None = Field(None, ge=0, le=10**6, description="passes over the training split; default 10")
    steps: int | None = Field(None, ge=0, le=10**9, description="optimizer steps, instead of epochs")
    batch_size: int = Field(64, ge=1, le=10**6, description="examples per optimizer step, over all processes")
    drop_last: bool = Field(False, description="leave out a last batch of an epoch that is smaller than the others")
    accumulate: int = Field(1, ge=1, le=10**4, description="parts in which a batch is computed, to save memory")
    evaluate_every: int = Field(1, ge=1, description="epochs between evaluations on the validation split")
    select: Literal["last", "best"] = Field("last", description="final weights: the last, or the best on validation")
    log_every: int = Field(10, ge=1, description="steps between loss events")
    workers: int = Field(0, ge=0, le=64, description="loader processes for data read from files")

    @model_validator(mode="after")
    def _one_budget(self) -> Train:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        return self


class Optimizer(Options):
    """The base optimizer (torch.optim)."""

    name: Literal["sgd", "adam", "adamw"] = Field("sgd", description="torch.optim class")
    lr: float = Field(0.05, ge=0, le=1e3, description="peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum")
    nesterov: bool = Field(False, description="SGD with Nesterov momentum")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Adam decay rates")
    clip_norm: float | None = Field(None, gt=0, description="largest global norm of the gradient that is applied")
    weight_decay: float = Field(5e-4, ge=0, le=10, description="L2 (SGD, Adam) or decoupled (AdamW) decay")


class Scheduler(Options):
    """The learning-rate schedule, a function of the step over the whole budget."""

    name: Literal["cosine", "constant", "multistep"] = Field("cosine", description="shape after the warm-up")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    milestones: tuple[float, ...] = Field((0.5, 0.75), description="multistep: shares of the budget")
    gamma: float = Field(0.1, gt=0, le=1, description="multistep: factor at each milestone")


class Checkpointing(Options):
    """When to write checkpoints."""

    every_steps: int | None = Field(None, ge=1, description="steps between checkpoints; default: every epoch")
    keep: int = Field(2, ge=1, le=1000, description="how many recent checkpoints stay")


class Distributed(Options):
    """How several processes share a run; how many there are is the launcher's choice, not the recipe's."""

    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp", description="every process holds the whole network (ddp), or a part of its parameters (fsdp)"
    )
    timeout: float = Field(300.0, gt=0, le=86400, description="seconds that a process waits for the others")
    unused_parameters: bool = Field(False, description="ddp: allow parameters that take no part in a forward pass")


ExportFormat = Literal["safetensors", "torch_export", "torchscript", "onnx"]


class Export(Options):
    """What is written to ``export/``."""

    formats: tuple[ExportFormat, ...] = Field(("safetensors",), description="forms of the exported model")


class Recipe(Options):
    """Everything that says what a run does; the resolved recipe in a run directory repeats it."""

    seed: int = Field(0, ge=0, lt=2**63, description="seed of every generator of the run")
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, mps, cuda or cuda:N")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="compute precision (weights stay fp32)")
    compile: bool = Field(False, description="torch.compile the model's forward pass")
    loggers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field((), description="Accelerate trackers")
    data: Component = Field(default_factory=lambda: Component(name=None))
    model: Component = Field(default_factory=lambda: Component(name=None))
    train: Train = Field(default_factory=Train)
    optimizer: Optimizer = Field(default_factory=Optimizer)
    scheduler: Scheduler = Field(default_factory=Scheduler)
    checkpoint: Checkpointing = Field(default_factory=Checkpointing)
    export: Export = Field(default_factory=Export)
    distributed: Distributed = Field(default_factory=Distributed)
    plugins: dict[str, dict[str, Any]] = Field(default_factory=dict, description="plugin -> options, in order")

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str = "the recipe") -> Recipe:
        """Check a nested mapping.

        Raises:
            BadInput: naming ``where``, the key, the value, and the nearest valid key for an unknown one.
        """
        return validated(cls, values, where)

    @classmethod
    def load(cls, path: Path | str) -> Recipe:
        """Read a TOML file.

        Raises:
            BadInput: no such file, not TOML, or a bad key or value.
        """
        return cls.parse(read_toml(Path(path)), str(path))

    def to_toml(self) -> str:
        """The recipe as TOML, keys without a value left out."""
        import tomli_w

        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))

    def merged(self, overrides: Mapping[str, Any], where: str = "--set") -> Recipe:
        """A new recipe with dotted keys (``train.epochs``, ``chase.density``) replaced.

        A first part that is no table of the recipe is taken as a plugin's name, which must be in the recipe. A budget
        in steps replaces one in epochs, and the other way round.
        """
        if not overrides:
            return self
        values = _without_none(self.model_dump(exclude_unset=True))
        for budget, rival in (("steps", "epochs"), ("epochs", "steps")):
            if f"train.{budget}" in overrides and f"train.{rival}" not in overrides and "train" in values:
                values["train"].pop(rival, None)
        for dotted, value in overrides.items():
            head, _, rest = dotted.partition(".")
            if head in Recipe.model_fields and head != "plugins":
                _assign(values, dotted, value, where)
            elif not rest:
                raise BadInput(f"{where} {dotted}: no such key.{nearest(head, Recipe.model_fields)}")
            elif head in values.get("plugins", {}):
                _assign(values["plugins"][head], rest, value, where)
            else:
                raise BadInput(
                    f"{where} {dotted}: {head!r} is neither a table of the recipe nor one of its plugins."
                    f"{nearest(head, [*Recipe.model_fields, *values.get('plugins', {})])}"
                    f" Add -p {head} if it is a plugin."
                )
        return Recipe.parse(values, where)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file (also as Windows editors write it), or raise BadInput that says what is wrong with it."""
    import tomllib  # planning without a file must stay fast

    try:
        content = path.read_bytes()
        # no TOML has a NUL character, and every UTF-16 file of one has NUL bytes
        return tomllib.loads(content.decode("utf-16" if b"\0" in content else "utf-8-sig"))
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path}: not valid TOML: {error}.") from error


def parse_value(text: str) -> Any:
    """A ``--set`` value: TOML where it is TOML (numbers, true, lists), else the text itself."""
    import tomllib

    try:
        document = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return document["value"] if document.keys() == {"value"} and "\n" not in text else text


def validated(model: type[T], values: Any, where: str) -> T:
    """``model.model_validate`` with errors for people.

    Raises:
        BadInput: one line per problem: where, which key, what was given, what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise BadInput("\n".join(_lines(model, error, where))) from None
    except RecursionError:
        raise BadInput(f"{where}: nested too deeply.") from None


def _lines(model: type[BaseModel], error: ValidationError, where: str) -> Iterable[str]:
    for problem in error.errors(include_url=False):
        location = [str(part) for part in problem["loc"]]
        key = ".".join(location) or "value"
        if problem["type"] == "extra_forbidden":
            valid = _fields_at(model, location[:-1])
            yield f"{where}: unknown key {key!r}.{nearest(location[-1], valid)} Valid: {', '.join(valid)}."
        elif problem["type"] == "missing":
            yield f"{where}: {key} is required; give it with --set or in the recipe."
        else:
            given = repr(problem.get("input"))
            given = given if len(given) <= 80 else given[:77] + "..."
            yield f"{where}: {key} = {given}: {problem['msg'].removeprefix('Value error, ')}."


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    for part in location:
        field = model.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)


def _assign(values: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    *parents, last = dotted.split(".")
    for part in parents:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise BadInput(f"{where} {dotted}: {part!r} is a value, not a table.")
    values[last] = value


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_without_none(v) for v in value if v is not None]
    return value


def assemble(
    recipe: Recipe | Path | str | Mapping[str, Any] | None = None,
    *,
    plugins: Sequence[str] | Mapping[str, Mapping[str, Any]] = (),
    data: str | None = None,
    model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    device: str | None = None,
) -> Recipe:
    """One recipe from a base and changes to it; the changes win.

    Args:
        recipe: a recipe, a TOML file, a nested mapping, or nothing (all defaults).
        plugins: plugins to add, after the recipe's own; a mapping gives their options.
        data, model: a registered name or an import path; replaces the recipe's and its options.
        settings: dotted keys -> values (``chase.density``, ``optimizer.lr``, ``data.share``).
        epochs, steps, seed, device: shorthands for ``train.epochs``, ``train.steps``, ``seed`` and ``device``.

    Raises:
        BadInput: any unknown key or bad value.
    """
    if isinstance(recipe, (str, Path)):
        recipe = Recipe.load(recipe)
    base = recipe if isinstance(recipe, Recipe) else Recipe.parse(recipe or {})
    values = _without_none(base.model_dump(exclude_unset=True))
    chosen: dict[str, dict[str, Any]] = values.setdefault("plugins", {})
    for name in plugins:
        chosen.setdefault(name, {}).update(plugins[name] if isinstance(plugins, Mapping) else {})
    for key, component in (("data", data), ("model", model)):
        if component is not None:
            values[key] = {"name": component}
    given = _without_none({"train.epochs": epochs, "train.steps": steps, "seed": seed, "device": device})
    return Recipe.parse(values, "the recipe").merged(given, "the recipe").merged(settings or {})
