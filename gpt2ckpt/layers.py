"""The repeated layers of a model, which Muon and FSDP treat differently from its other parts."""

from torch import nn


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers of a model in order, e.g. the blocks of a Transformer.

    These are the members of each nn.ModuleList and nn.Sequential that holds only modules of one
    class, with submodules of their own. A list of single operations, such as embeddings, does not
    count, nor does a list inside a layer.
    """
    if isinstance(model, nn.ModuleList | nn.Sequential):
        members = list(model)
        if len({type(member) for member in members}) == 1 and any(members[0].children()):
            return members
    return [layer for child in model.children() for layer in repeated_layers(child)]


def hidden_matrices(model: nn.Module) -> set[nn.Parameter]:
    """Return the parameters that Muon is for: the matrices of repeated layers, without embeddings.

    A matrix that is also used outside these layers counts as one of them.
    """
    return {
        parameter
        for layer in repeated_layers(model)
        for module in layer.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
        if parameter.ndim == 2
    }
