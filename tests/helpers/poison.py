"""Numbers that are not finite, in one optimizer step of a trainer."""


def poison(t, step, spoil):
    """In one optimizer step, `spoil` changes what `kto_step` hands back."""
    import fastkto.training.trainer as module

    stock = module.kto_step

    def kto_step(*args, **kwargs):
        out, aux_loss = stock(*args, **kwargs)
        return (spoil(out) if t.state.global_step + 1 == step else out), aux_loss

    return module, kto_step


def spoiled(name, row, value):
    def spoil(out):
        x = getattr(out, name).clone()
        x[row] = value
        return out._replace(**{name: x})

    return spoil
