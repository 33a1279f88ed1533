"""One update of the model and its discriminator by the paper's objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from encodec_fast.serving.clips import levels_of
from encodec_fast.serving.functions import normalize
from encodec_fast.training.balancer import Balancer
from encodec_fast.training.distributed import MeanGradients, mean_over_parts, world_size
from encodec_fast.training.forward import run_layers
from encodec_fast.training.losses import MelLoss, discriminator_loss, feature_loss, feature_norms, generator_loss, time_loss
from encodec_fast.training.precision import in_float32, matrix_products, networks_in
from encodec_fast.training.quantization import FoundEntries, QuantizerTrainer

# Of a model, which a step may leave as they are
PARTS = ("encoder", "quantizer", "decoder")


@dataclass(frozen=True)
class StepOptions:
    """What a step is made of; `of_rate` gives the paper's.

    weights: of the balanced losses `time`, `mel`, `generator` and `features`; the latter two are for a discriminator.
    commitment: weight of the commitment loss, which is not balanced.
    discriminator_share: probability that the discriminator is updated in a step.
    learning_rate, betas: of Adam, for the model and the discriminator.
    mel_exponents: the windows of the mel loss, as powers of two.
    seed: of bandwidths, updates of the discriminator and replaced entries. It must be the same on all ranks.
    frozen: parts that stay as they are, of PARTS. A frozen encoder runs without gradients, as the model serves it.
    precision: of the networks' products, `float32`, `tf32` or `bf16`. Weights, codebooks and losses are float32 in each.
    compile: the discriminator's layers by torch.compile, of a `MultiScaleSTFTDiscriminator`.
    gradient_accumulation_steps: parts that a batch is cut into. They run one after the other, so that memory is that of one part.
    """

    weights: Mapping[str, float]
    commitment: float = 1.0
    discriminator_share: float = 2 / 3
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.5, 0.9)
    mel_exponents: tuple[int, ...] = tuple(range(5, 12))
    seed: int = 0
    frozen: tuple[str, ...] = ()
    precision: str = "float32"
    compile: bool = False
    gradient_accumulation_steps: int = 1

    @classmethod
    def of_rate(cls, sampling_rate: int, **changes: Any) -> StepOptions:
        """Returns the paper's options for 48 kHz from that rate on, and those for 24 kHz below, with changes."""
        adversarial, share = (4.0, 1 / 2) if sampling_rate >= 48_000 else (3.0, 2 / 3)
        weights = {"time": 0.1, "mel": 1.0, "generator": adversarial, "features": adversarial}
        return cls(**{"weights": weights, "discriminator_share": share, **changes})


@dataclass(frozen=True)
class StepReport:
    """What happened in a step; tensors stay on the device until somebody reads them.

    bandwidth: kbps, as drawn.  losses: each before its weight, the mean over ranks; `discriminator` where that was updated.
    shares: of each balanced loss in the sum of their gradients' norms, before the balancer.
    perplexity, replaced: of each level that was used, see `QuantizedBatch`.
    """

    bandwidth: float
    losses: dict[str, Tensor]
    shares: dict[str, float]
    perplexity: Tensor
    replaced: Tensor


class TrainingStep:
    """Updates a model, and a discriminator where there is one, with a batch of audio.

    The model's own parameters and buffers change, so that `model.save_pretrained` and `model.state_dict` have all that it learned.
    With `torch.distributed` every rank makes its own and gives it its share of the batch, of equal sizes. Losses, gradients and
    codebooks are those of the whole batch, and equal to one rank's up to rounding. On CPUs, one rank with as many parts has the same bits.
    A rank's parts must be a power of two for that.
    One discriminator serves all bandwidths; the paper has one for each.

    model: `EncodecModel`, ours or transformers'.  discriminator: such as `MultiScaleSTFTDiscriminator`; None trains without.
    options: None for the paper's.

    Raises ValueError for weights of losses that are not there and for frozen parts that leave nothing to learn. Also for less than one
    part.
    """

    def __init__(self, model: Any, discriminator: Any = None, options: StepOptions | None = None) -> None:
        self.model, self.discriminator = model, discriminator
        self.options = options = options or StepOptions.of_rate(model.config.sampling_rate)
        known = {"time", "mel", "generator", "features"}
        if not set(options.weights) <= known:
            raise ValueError(f"weights are of {sorted(options.weights)}; allowed are {', '.join(sorted(known))}.")
        if options.gradient_accumulation_steps < 1:
            raise ValueError(f"gradient_accumulation_steps is {options.gradient_accumulation_steps}; 1 or more is allowed.")
        self._freeze(options.frozen)
        names = known if discriminator is not None else {"time", "mel"}
        # its gradient is a sum over clips, of which averaging over ranks and parts would leave a share
        parts = world_size() * options.gradient_accumulation_steps
        self.balancer = Balancer({name: weight for name, weight in options.weights.items() if name in names}, norm=parts)
        self.quantizer = QuantizerTrainer(model.quantizer, seed=options.seed)
        self.mel = MelLoss(model.config.sampling_rate, options.mel_exponents, dtype=model.dtype).to(model.device)
        self.optimizer = self._adam(model)
        self.discriminator_optimizer = None if discriminator is None else self._adam(discriminator)
        self._generator = torch.Generator().manual_seed(options.seed)
        networks_in(options.precision, model.device)
        if options.compile and discriminator is not None:
            discriminator.compile_layers()

    def __call__(self, audio: Tensor) -> StepReport:
        """Runs one update.

        audio: [B, C, T] on the model's device and in its dtype, full scale +-1.0.
        Raises ValueError for audio that is not finite or shorter than the widest window, before anything has changed. Also where B is no
        multiple of the parts.
        """
        parts = self.options.gradient_accumulation_steps
        if not len(audio) or len(audio) % parts:
            raise ValueError(f"audio has {len(audio)} clips; a multiple of gradient_accumulation_steps, {parts}, is needed.")
        with matrix_products(self.options.precision):
            return self._update(audio)

    def _update(self, audio: Tensor) -> StepReport:
        bandwidths = self.model.config.target_bandwidths
        bandwidth = bandwidths[int(torch.randint(len(bandwidths), (), generator=self._generator))]
        judged = bool(torch.rand((), generator=self._generator) < self.options.discriminator_share)
        parts = audio.chunk(self.options.gradient_accumulation_steps)
        found, passes = self._first_passes(parts, levels_of(self.model.quantizer, bandwidth))
        outputs = [output.detach() for output, _ in passes]
        losses = {}
        if self.discriminator is not None and judged:
            losses["discriminator"] = self._update_discriminator(parts, outputs)
        balanced, gradients, shares = self._balanced_gradients(parts, outputs)
        means = MeanGradients(self.model.parameters())
        commitments = []
        for number, (part, gradient) in enumerate(zip(parts, gradients, strict=True)):
            alone = len(parts) == 1
            output, commitment = passes[0] if alone else self._decode(*self._encode(part), found[number], part.shape[-1])
            # a frozen encoder commits to nothing
            beside = [self.options.commitment * commitment] if commitment.requires_grad else []
            torch.autograd.backward([output, *beside], [gradient, *map(torch.ones_like, beside)])
            means.add()
            commitments.append(commitment.detach())
        means.finish()
        self.optimizer.step()
        perplexity, replaced = self.quantizer.move(found, "quantizer" not in self.options.frozen)
        losses |= {**balanced, "commitment": mean_over_parts(commitments)}
        return StepReport(bandwidth, losses, shares, perplexity, replaced)

    @torch.no_grad()
    def evaluate(self, audio: Tensor, bandwidth: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the model's audio, [B, C, T], and the losses at a bandwidth (kbps), and changes nothing."""
        embeddings, scale = self._encode(audio)
        found = self.quantizer.look_up(embeddings, levels_of(self.model.quantizer, bandwidth))
        output, commitment = self._decode(embeddings, scale, found, audio.shape[-1])
        return output, {**self._losses(audio, output), "commitment": commitment}

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a step goes on from, beside the model's own state."""
        parts: dict[str, Any] = {"optimizer": self.optimizer, "balancer": self.balancer, "quantizer": self.quantizer}
        if self.discriminator is not None:
            parts |= {"discriminator": self.discriminator, "discriminator_optimizer": self.discriminator_optimizer}
        return {**{name: part.state_dict() for name, part in parts.items()}, "generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on as the step that gave `state_dict`, once the model has its state.

        Raises ValueError where one has a discriminator and the other has none.
        """
        if ("discriminator" in state) != (self.discriminator is not None):
            have, has = ("a", "no") if "discriminator" in state else ("no", "a")
            raise ValueError(f"The state has {have} discriminator and this step has {has}. Make the step as the one before.")
        for name in state.keys() - {"generator"}:
            getattr(self, name).load_state_dict(state[name])
        self._generator.set_state(state["generator"].cpu())

    def set_learning_rate(self, rate: float) -> None:
        """Lets the next steps learn at another rate, the model and the discriminator alike."""
        for optimizer in (self.optimizer, self.discriminator_optimizer):
            for group in optimizer.param_groups if optimizer is not None else ():
                group["lr"] = rate

    def _adam(self, module: nn.Module) -> torch.optim.Adam:
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return torch.optim.Adam(learning, self.options.learning_rate, self.options.betas)

    def _freeze(self, parts: Sequence[str]) -> None:
        """Takes the gradients from the parameters of parts."""
        if not set(parts) <= set(PARTS) or {"encoder", "decoder"} <= set(parts):
            raise ValueError(f"frozen is {list(parts)}; allowed are {', '.join(PARTS)}, but the encoder or the decoder must learn.")
        if "quantizer" in parts and not all(layer.codebook.embed.any() for layer in self.model.quantizer.layers):
            raise ValueError("frozen has 'quantizer', whose codebooks are zeros. Let it learn, or take a model that was trained.")
        for part in parts:
            getattr(self.model, part).requires_grad_(False)

    def _first_passes(self, parts: Sequence[Tensor], levels: int) -> tuple[list[FoundEntries], list[tuple[Tensor, Tensor]]]:
        """Returns the entries found for each part, and of each the model's audio and the commitment loss.

        Of a single part they have their graphs. Those of several would all be in memory, so that each part runs once more later.
        """
        keep, encoded = len(parts) == 1, []
        for part in parts:
            embeddings, scale = self._encode(part)
            # torch may take other kernels where nothing needs a gradient
            encoded.append((embeddings if keep else embeddings.detach().requires_grad_(embeddings.requires_grad), scale))
        if "quantizer" not in self.options.frozen:
            self.quantizer.start([embeddings for embeddings, _ in encoded], levels)
        found, passes = [], []
        for part, (embeddings, scale) in zip(parts, encoded):
            found.append(self.quantizer.look_up(embeddings, levels))
            output, commitment = self._decode(embeddings, scale, found[-1], part.shape[-1])
            passes.append((output, commitment) if keep else (output.detach(), commitment.detach()))
        return found, passes

    def _encode(self, audio: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the embeddings of audio and, where the model normalises, its scale."""
        clean, scale = normalize(audio) if self.model.config.normalize else (audio, None)
        if "encoder" in self.options.frozen:
            with torch.no_grad():
                return self.model.encoder(clean), scale
        # not the modules' own forward, whose backward pass would run them a second time
        return self._run(self.model.encoder, clean), scale

    def _decode(self, embeddings: Tensor, scale: Tensor | None, found: FoundEntries, length: int) -> tuple[Tensor, Tensor]:
        """Returns the model's audio of so many samples, and the commitment loss."""
        quantized, commitment = self.quantizer.straight_through(embeddings, found)
        output = self._run(self.model.decoder, quantized)[..., :length]
        return output if scale is None else output * scale.view(-1, 1, 1), commitment

    def _run(self, network: nn.Module, x: Tensor) -> Tensor:
        """Runs the encoder or the decoder in the step's precision; codes and losses are made of float32."""
        with networks_in(self.options.precision, x.device):
            found: Tensor = in_float32(run_layers(network, x))
        return found

    def _judge(self, audio: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Returns the discriminator's logits and features of audio in the step's precision, in float32."""
        assert self.discriminator is not None
        with networks_in(self.options.precision, audio.device):
            logits, features = self.discriminator(audio)
        return in_float32(logits), in_float32(features)

    def _update_discriminator(self, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
        """Runs an update with the parts' recordings and the model's audio; returns the loss of the whole batch."""
        assert self.discriminator is not None and self.discriminator_optimizer is not None
        means, losses = MeanGradients(self.discriminator.parameters()), []
        for x, y in zip(real, fake):
            loss = discriminator_loss(self._judge(x)[0], self._judge(y)[0])
            loss.backward()
            means.add()
            losses.append(loss.detach())
        means.finish()
        self.discriminator_optimizer.step()
        return mean_over_parts(losses)

    def _balanced_gradients(
        self, parts: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor], dict[str, float]]:
        """Returns the losses of the whole batch, the balanced gradient at the model's audio of each part, and the shares."""
        norms = None
        if self.discriminator is not None and len(parts) > 1:
            with torch.no_grad():
                norms = mean_over_parts([feature_norms(self._judge(part)[1]) for part in parts])
        found = [self._partials(part, output, norms) for part, output in zip(parts, outputs)]
        gradients, shares = self.balancer.combine([partials for _, partials in found])
        means = mean_over_parts([torch.stack(list(losses.values())) for losses, _ in found])
        return dict(zip(found[0][0], means)), gradients, shares

    def _partials(self, audio: Tensor, output: Tensor, norms: Tensor | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the losses of a part and their gradients at its audio, neither with a graph: the next part needs the memory."""
        leaf = output.requires_grad_()
        losses = self._losses(audio, leaf, norms)
        return {name: loss.detach() for name, loss in losses.items()}, self.balancer.partials(losses, leaf)

    def _losses(self, audio: Tensor, output: Tensor, norms: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the balanced losses of a part; norms: as of `feature_loss`."""
        losses = {"time": time_loss(audio, output), "mel": self.mel(audio, output)}
        if self.discriminator is not None:
            with torch.no_grad():
                _, real = self._judge(audio)
            logits, fake = self._judge(output)
            losses |= {"generator": generator_loss(logits), "features": feature_loss(real, fake, norms)}
        return {name: loss for name, loss in losses.items() if name in self.balancer.weights}
