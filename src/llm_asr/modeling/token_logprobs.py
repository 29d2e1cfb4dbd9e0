"""Log-probabilities of new tokens, from the passes that decoding makes anyway."""

import torch
from transformers.generation import StoppingCriteria
from transformers.utils import ModelOutput


class TokenLogprobs(StoppingCriteria):
    """
    Records the log-probability of each new token. `generate(output_logits=True)` would keep the logits of all steps, which
    take gigabytes for a large vocabulary.

    Among the stopping criteria of greedy decoding or sampling, with `note_logits` as a forward hook of the model, it records
    by itself. Other loops call `add`.

    Args:
        end_token_ids (`list[int]`): Tokens that end a sequence.

    Attributes:
        steps (`list[torch.Tensor]`): Natural logarithms of the probabilities of the chosen tokens, before temperature and
            other processing: one tensor of shape `(batch_size,)` for each step. Anything after the end of a row.
        no_speech_probs (`torch.Tensor` of shape `(batch_size,)`): Probability that the first token ends the sequence.
    """

    def __init__(self, end_token_ids: list[int]):
        self.end_token_ids = end_token_ids
        self.steps: list[torch.Tensor] = []
        self.no_speech_probs = torch.empty(0)
        self._logits = torch.empty(0)

    def note_logits(self, model: torch.nn.Module, arguments: tuple, output) -> None:
        """A forward hook of the model that `generate` runs."""
        self._logits = output.logits[:, -1]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        rows = torch.arange(len(input_ids), device=input_ids.device)
        self.add(len(self.steps), rows, self._logits.to(input_ids.device), input_ids[:, -1], len(rows))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def add(self, step: int, rows: torch.Tensor, logits: torch.Tensor, tokens: torch.Tensor, batch_size: int) -> None:
        """
        Record tokens of a step.

        Args:
            step (`int`): Which new token it is, from zero.
            rows (`torch.LongTensor` of shape `(num_rows,)`): Rows of the batch.
            logits (`torch.Tensor` of shape `(num_rows, vocab_size)`): Their logits.
            tokens (`torch.LongTensor` of shape `(num_rows,)`): The chosen tokens.
            batch_size (`int`): Rows of the whole batch.
        """
        logprobs = logits.float().log_softmax(-1)
        if step == len(self.steps):
            self.steps.append(logprobs.new_zeros(batch_size))
        if not len(self.no_speech_probs):
            self.no_speech_probs = logprobs.new_zeros(batch_size)
        if step == 0:
            self.no_speech_probs[rows] = logprobs[:, self.end_token_ids].exp().sum(-1)
        self.steps[step][rows] = logprobs.gather(-1, tokens[:, None])[:, 0]

    def add_outputs(self, outputs: ModelOutput, num_given: int) -> None:
        """
        Record the tokens of any way of decoding.

        Args:
            outputs (`ModelOutput`): Of `generate(return_dict_in_generate=True, output_logits=True)`.
            num_given (`int`): Tokens in `outputs.sequences` before the first new one.
        """
        tokens = outputs["sequences"][:, num_given:]
        rows = torch.arange(len(tokens), device=tokens.device)
        # Beams change their rows in each step.
        beams = outputs.get("beam_indices")
        for step in range(tokens.shape[1]):
            logits = outputs["logits"][step]
            if beams is not None:
                logits = logits[beams[:, step].clamp(min=0).to(logits.device)]
            self.add(step, rows, logits.to(tokens.device), tokens[:, step], len(rows))

    def logprobs(self) -> torch.Tensor:
        """All log-probabilities, of shape `(batch_size, num_steps)`."""
        return torch.stack(self.steps, dim=1)


__all__ = ["TokenLogprobs"]
