"""Train the embeddings of only those tokens that occur in the training texts.

A few thousand reviews use a third of KoBERT's vocabulary, and a hundredth of a multilingual one. AdamW would update all
rows of the embedding table at every step. The gradient of the rows of all other tokens is zero, so weight decay alone
changes them, and it multiplies all of them by the same factor.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import embedding

from stages.common.modeling.dataset import TokenizedDataset
from stages.common.modeling.types import Model


class CompactEmbedding(nn.Module):
    """An embedding whose `weight` has the rows of some tokens, and a last row that belongs to no token.

    The last row is initialised with ones. Weight decay alone changes it, as it would change the rows that are left out.
    These rows are therefore, at any time, their old values times the last row.

    Args:
        table: The embedding of the whole vocabulary.
        token_ids: Ids of the tokens that occur in training, (tokens,), sorted.
    """

    def __init__(self, table: nn.Embedding, token_ids: torch.Tensor) -> None:
        super().__init__()
        self.train(table.training)
        old = table.weight.detach()
        self.weight = nn.Parameter(torch.cat([old[token_ids], old.new_ones(1, old.shape[1])]))
        self._table, self._token_ids = [table], token_ids  # A list hides the table from nn.Module.
        rows = torch.full((len(old),), len(token_ids), device=old.device)
        self._rows = rows.index_copy(0, token_ids, torch.arange(len(token_ids), device=old.device))
        self._padding_row = None if table.padding_idx is None else int(self._rows[table.padding_idx])

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings (..., hidden_size) of token ids (...). In evaluation these may be any tokens."""
        rows = self._rows[input_ids]
        states = embedding(rows, self.weight, self._padding_row)
        if self.training:
            return states
        others = embedding(input_ids, self._table[0].weight) * self.weight[-1]
        return torch.where((rows == len(self._token_ids)).unsqueeze(-1), others, states)

    @torch.no_grad()
    def expand(self) -> nn.Embedding:
        """Return the embedding of the whole vocabulary with its current values."""
        (table,) = self._table
        table.weight.mul_(self.weight[-1]).index_copy_(0, self._token_ids, self.weight[:-1])
        return table


def compact_embedding(model: Model, dataset: TokenizedDataset) -> None:
    """Replace the embedding of `model`, if it is trained, by one that trains only the tokens in `dataset`."""
    table: Any = model.get_input_embeddings()
    if type(table) is nn.Embedding and table.weight.requires_grad:
        used = np.union1d(dataset.input_ids.flatten().to_numpy(), model.config.pad_token_id)
        token_ids = torch.from_numpy(used.astype(np.int64)).to(table.weight.device)
        model.set_input_embeddings(CompactEmbedding(table, token_ids))


def expand_embedding(model: Model) -> None:
    """Replace a compact embedding by one of the whole vocabulary, with the trained values."""
    if isinstance(compact := model.get_input_embeddings(), CompactEmbedding):
        model.set_input_embeddings(compact.expand())
