"""Which shortcuts updates may take with a language model, tested on a few tokens when the model is loaded.

Updates take the last hidden states, apply the head themselves and compute common prefixes of rows once. Not all
architectures allow this: some scale their logits after the head, some mix the rows of a batch, some attend to padding.
Each shortcut is compared with a plain forward pass of every row alone, and is not used if the numbers differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from collm.architectures.decoders import decoder_of
from collm.architectures.forward import last_hidden_states, logits_of, without_cache
from collm.errors import ConfigurationError

_LENGTHS = (4, 7, 7)  # of the rows that are tried; the last two are equal
_MAX_ERROR_OF_ROWS = 20  # times the tolerance: a model beyond it is refused, as there is no other way to compute it
_MARK_SCALE = 20.0  # standard deviation of the logits that replace the head's, large enough to show capping


@dataclass(frozen=True)
class Support:
    """The shortcuts that updates may take with a language model.

    Args:
        known_decoder: Its architecture is one of `collm.architectures.decoders`; nothing has to be tested.
        plain_head: Its logits are the head's outputs for the last hidden states, unscaled.
        shared_prefixes: Common prefixes of rows may be computed once.
    """

    known_decoder: bool = True
    plain_head: bool = True
    shared_prefixes: bool = True


def support_of(lm: PreTrainedModel, path: str, fast_updates: bool) -> Support:
    """The shortcuts that updates may take with `lm`, which is put into evaluation mode.

    Args:
        lm: The model.
        path: Name of the model in error messages.
        fast_updates: Whether to test common prefixes as well.

    Raises:
        ConfigurationError: No way of computing log-probabilities gives the numbers of a plain forward pass.
    """
    if lm.device.type == "meta" or decoder_of(lm) is not None:
        return Support()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        return _Trial(lm.eval(), path).run(fast_updates)


def trial_rows(lm: PreTrainedModel, generator: torch.Generator) -> list[list[int]]:
    """Token rows on which models are tried: two lengths, a common beginning, and two equal rows."""
    size = lm.config.get_text_config().vocab_size
    rows = [torch.randint(size, (length,), generator=generator).tolist() for length in _LENGTHS[:-1]]
    rows[1][:2] = rows[0][:2]
    return [*rows, rows[-1]]


def tolerance_of(lm: PreTrainedModel) -> float:
    """Largest difference, in standard deviations, that rounding explains."""
    return 1e-4 if torch.finfo(lm.dtype).bits >= 32 else 0.2


def unsupported(lm: PreTrainedModel, path: str, reason: str) -> ConfigurationError:
    """The error that the model at `path` cannot be used, in one line."""
    return ConfigurationError(
        f"{path!r} is a {lm.config.model_type!r} model ({type(lm).__name__}), which cannot be trained here: {reason}; "
        "choose another model."
    )


def works(trial: Callable[[], bool]) -> bool:
    """Whether a trial succeeds; unsupported models raise all kinds of errors; only a lack of memory is passed on."""
    try:
        return trial()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:
        return False


class _Trial:
    def __init__(self, lm: PreTrainedModel, path: str):
        self.lm = lm
        self.path = path
        self.generator = torch.Generator().manual_seed(0)
        self.rows = trial_rows(lm, self.generator)
        self.tolerance = tolerance_of(lm)
        self.states = self._states_of_rows()  # of each row alone

    def run(self, fast_updates: bool) -> Support:
        plain_head = self._has_plain_head()
        if not plain_head and not works(self._rescales_given_states):
            raise unsupported(
                self.lm,
                self.path,
                "the log-probabilities of its tokens cannot be computed from its last hidden states",
            )
        return Support(False, plain_head, fast_updates and works(self._shares_prefixes))

    def _ids(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Rows padded on the right, [R, L]."""
        width = max(map(len, rows))
        return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=self.lm.device)

    def _states_of_rows(self) -> list[Tensor]:
        """Last hidden states of each row; models whose states depend on later tokens or on other rows are refused."""
        if not isinstance(self.lm.get_output_embeddings(), nn.Module):
            raise unsupported(self.lm, self.path, "it has no head that predicts tokens")
        try:
            alone = [last_hidden_states(self.lm, self._ids([row]))[0] for row in self.rows]
            together = last_hidden_states(self.lm, self._ids(self.rows))
        except (TypeError, AttributeError, ValueError, RuntimeError, IndexError) as error:
            reason = f"a plain forward pass raises {type(error).__name__}: {error}"
            raise unsupported(self.lm, self.path, reason) from error
        errors = [self._error(batched[: len(own)], own) for batched, own in zip(together, alone, strict=True)]
        if not max(errors) <= _MAX_ERROR_OF_ROWS * self.tolerance:
            reason = "what it makes of a token depends on tokens behind it or on other sequences"
            raise unsupported(self.lm, self.path, reason)
        return alone

    @staticmethod
    def _error(actual: Tensor, expected: Tensor) -> float:
        """The largest difference, in standard deviations of the expected values."""
        return float((actual.float() - expected.float()).abs().max() / expected.float().std().clamp(min=1e-6))

    def _close(self, actual: Tensor, expected: Tensor) -> bool:
        return self._error(actual, expected) <= self.tolerance

    @contextmanager
    def _marked_head(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Replace the head's outputs for the first row by large random numbers; yields them and the head's inputs."""
        head = self.lm.get_output_embeddings()
        shape = (len(self.rows[0]), head.weight.shape[0])
        marks = (_MARK_SCALE * torch.randn(shape, generator=self.generator)).to(self.lm.device, self.lm.dtype)
        inputs: list[Tensor] = []

        def replace(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            inputs.append(args[0])
            return marks.view_as(out)

        hook = head.register_forward_hook(replace)
        try:
            yield marks, inputs
        finally:
            hook.remove()

    def _has_plain_head(self) -> bool:
        """Whether the inputs of the head are the last hidden states, and its outputs the logits."""
        with self._marked_head() as (marks, inputs):
            logits = self._logits()
        reads_states = len(inputs) == 1 and self._close(inputs[0].view_as(self.states[0]), self.states[0])
        return reads_states and logits.shape == marks.shape and bool((logits == marks).all())

    def _rescales_given_states(self) -> bool:
        """Whether the model's own code computes the same logits from last hidden states that are given to it."""
        with self._marked_head() as (_, inputs):
            own = self._logits()
            from_states = logits_of(self.lm, self.states[0])
        return len(inputs) == 2 and self._close(inputs[1], inputs[0]) and bool((own == from_states).all())

    def _logits(self) -> Tensor:
        """Logits of the first row, [L, V]."""
        return self.lm(input_ids=self._ids(self.rows[:1]), **without_cache(self.lm)).logits[0]

    def _shares_prefixes(self) -> bool:
        """Whether states that continue those of a shared prefix are those of separate rows.

        The first segments differ in length, so that some rows continue behind padding.
        """
        from collm.kernels.shared_prefix import Segment, by_level

        ends = [len(row) for row in self.rows]
        levels = [
            [Segment([0, 1], 0, 2), Segment([2], 0, ends[2] - 1)],
            [Segment([0], 2, ends[0]), Segment([1], 2, ends[1]), Segment([2], ends[2] - 1, ends[2], parent=1)],
        ]
        ids = self._ids(self.rows)
        states = by_level(self.lm, levels, ids, torch.ones_like(ids, dtype=torch.bool))
        return all(self._close(states[row, : len(own)], own) for row, own in enumerate(self.states))
