"""
Runs a checkpoint in the browser: record or upload speech, and see its transcript, the times of its words, and the shares of the
experts. A second tab transcribes the microphone while you speak.

    pip install -e ".[app]"
    python examples/demo_app.py --model runs/demo-moe_cif

Only this machine can open the app, unless --host names another address or --share requests a public one.
"""

import argparse
import html
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


try:
    import gradio as gr
except ImportError as error:
    raise ImportError(
        f'The app needs a package that is not installed ({error}): `pip install "llm-asr[app]"`.'
    ) from error
import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import Pipeline

from llm_asr.commands.options import DTYPES, UsageError
from llm_asr.commands.transcribe import load_transcriber
from llm_asr.evaluation.expert_usage import expert_usage
from llm_asr.live.events import LiveEvent
from llm_asr.live.stream import LlmAsrStream
from llm_asr.modeling.expert_balance import count_expert_load
from llm_asr.modeling.modeling_llm_asr import LlmAsrModel
from llm_asr.modeling.projector_llm_asr import ProjectorOutput
from llm_asr.processing.audio import load_audio
from llm_asr.processing.timestamps import join_segments
from llm_asr.processing.transcripts_llm_asr import SEGMENT_PAUSE


LET_THE_MODEL_NAME_IT = "Identified by the model"

# With more words, the labels of the plot would overlap.
MAX_WORDS = 60
MAX_PLOTTED_POINTS = 4000

# Seconds between the blocks that the browser sends.
BLOCK_S = 0.5
# Seconds after which the stream of a page that was closed is forgotten.
STREAM_LIFETIME_S = 3600


@contextmanager
def watch_projector(model: LlmAsrModel) -> Iterator[list[ProjectorOutput]]:
    """Collect the projector's outputs inside the block."""
    outputs: list[ProjectorOutput] = []
    hook = model.projector.register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


def plot_times(waveform: np.ndarray, sampling_rate: int, chunks: list[dict], write_text: bool) -> Figure:
    """
    Draw the waveform and the times of words or segments.

    Args:
        waveform (`np.ndarray` of shape `(num_samples,)`): The recording.
        sampling_rate (`int`): Samples per second.
        chunks (`list[dict]`): `{"text": str, "timestamp": (start, end)}`, in seconds.
        write_text (`bool`): Whether to write the text of each chunk.
    """
    figure = Figure(figsize=(11, 3), layout="constrained")
    axes = figure.subplots()
    peaks = np.array([np.abs(part).max() for part in np.array_split(waveform, min(len(waveform), MAX_PLOTTED_POINTS))])
    duration = len(waveform) / sampling_rate
    axes.fill_between(np.linspace(0, duration, len(peaks)), -peaks, peaks, color="tab:gray", linewidth=0)
    top = max(1.05 * float(peaks.max()), 1e-3)
    for index, chunk in enumerate(chunks):
        start, end = chunk["timestamp"]
        axes.axvspan(start, end, color=("tab:blue", "tab:orange")[index % 2], alpha=0.25, linewidth=0)
        if write_text:
            axes.text((start + end) / 2, 1.05 * top, chunk["text"], rotation=45, rotation_mode="anchor")
    axes.set(xlim=(0, duration), ylim=(-top, top), xlabel="seconds", yticks=[])
    axes.spines[["left", "right", "top"]].set_visible(False)
    return figure


def transcribe(
    transcriber: Pipeline, file: str | None, language: str, context: str
) -> tuple[str, str, Figure | None, list[list] | None, dict[str, float] | None]:
    """Return transcript, language, plot, times and shares of experts. For an error, show a message and return nothing."""
    sampling_rate, config = transcriber.processor.sampling_rate, transcriber.model.config.projector_config
    options = {"prompt": context.strip() or None, "language": None if language == LET_THE_MODEL_NAME_IT else language}
    nothing = ("", "", None, None, None)
    if file is None:
        gr.Warning("Record or upload speech first.")
        return nothing
    try:
        waveform = load_audio(file, sampling_rate)
        with watch_projector(transcriber.model.model) as projected:
            result = transcriber(waveform, return_timestamps="word" if config.uses_cif else True, **options)
    except ValueError as error:
        # Do not reveal the folder of uploads.
        gr.Warning(html.escape(str(error).replace(file, Path(file).name)))
        return nothing
    if not result["text"]:
        gr.Warning("No speech was found in the recording.")
        return nothing

    chunks = result["chunks"]
    is_crowded = len(chunks) > MAX_WORDS
    plot = plot_times(
        waveform,
        sampling_rate,
        join_segments(chunks, SEGMENT_PAUSE) if is_crowded else chunks,
        write_text=config.uses_cif and not is_crowded,
    )
    times = [[*(round(time, 2) for time in chunk["timestamp"]), chunk["text"]] for chunk in chunks]
    shares = None
    if config.uses_experts:
        loads = torch.stack([count_expert_load(one.router_logits, one.selected_experts) for one in projected])
        shares = expert_usage(loads.numpy(force=True))["shares"]["all"]
        shares = {f"expert {index}": share for index, share in enumerate(shares)}
    return result["text"], result["language"] or "", plot, times, shares


@dataclass
class LiveState:
    """
    The live transcription of one page.

    Attributes:
        stream ([`LlmAsrStream`], *optional*): The stream, from its first block on.
        is_recording (`bool`): Whether the microphone is on.
        committed (`str`): The text that does not change any more.
        partial (`str`): The text that may still change.
    """

    stream: LlmAsrStream | None = None
    is_recording: bool = False
    committed: str = ""
    partial: str = ""

    def take(self, events: list[LiveEvent]) -> None:
        """Apply events to the text."""
        for event in events:
            self.committed += event.committed
            self.partial = event.partial

    def show(self) -> str:
        """The text as HTML. What may change is dimmed."""
        partial = f"<span style='opacity: 0.5'>{html.escape(self.partial)}</span>"
        return f"<p id='live-text'>{html.escape(self.committed)}{partial}</p>"


def start_listening() -> tuple[LiveState, str]:
    """Begin a new transcript."""
    return LiveState(is_recording=True), ""


def listen(
    transcriber: Pipeline, state: LiveState, block: tuple[int, np.ndarray] | None, language: str
) -> tuple[LiveState, str]:
    """Add a block of the microphone, `(sampling rate, samples)`. Blocks that arrive after the end are left out."""
    if not state.is_recording or block is None:
        return state, state.show()
    rate, samples = block
    try:
        if state.stream is None:
            name = None if language == LET_THE_MODEL_NAME_IT else language
            state.stream = LlmAsrStream(transcriber.model, transcriber.processor, name, sampling_rate=rate)
        # Gradio has samples first, then channels. A slow model leaves transcripts of unfinished speech out.
        state.take(state.stream.push(np.ascontiguousarray(samples.T), rate, catch_up=True))
    except ValueError as error:
        gr.Warning(html.escape(str(error)))
    return state, state.show()


def stop_listening(state: LiveState) -> tuple[LiveState, str]:
    """Transcribe what remains."""
    if state.is_recording and state.stream is not None:
        state.take(state.stream.finish())
    state.is_recording, state.stream = False, None
    return state, state.show()


def add_live_tab(transcriber: Pipeline, languages: list[str]) -> None:
    """Add the microphone and its transcript to the app."""
    microphone = gr.Audio(sources=["microphone"], streaming=True, type="numpy", label="Microphone")
    language = gr.Dropdown(languages, value=LET_THE_MODEL_NAME_IT, label="Spoken language")
    text = gr.HTML(label="Live transcript", show_label=True, container=True, elem_id="live-transcript")
    state = gr.State(LiveState(), time_to_live=STREAM_LIFETIME_S)
    microphone.start_recording(start_listening, outputs=[state, text], api_visibility="private")
    microphone.stream(
        lambda *inputs: listen(transcriber, *inputs),
        inputs=[state, microphone, language],
        outputs=[state, text],
        stream_every=BLOCK_S,
        show_progress="hidden",
        api_visibility="private",
    )
    microphone.stop_recording(
        stop_listening, inputs=state, outputs=[state, text], show_progress="hidden", api_visibility="private"
    )


def build_app(transcriber: Pipeline) -> gr.Blocks:
    config = transcriber.model.config.projector_config
    languages = [LET_THE_MODEL_NAME_IT, *sorted(transcriber.processor.languages.values())]
    # Uploads are deleted within two hours.
    with gr.Blocks(title="llm-asr", analytics_enabled=False, delete_cache=(3600, 3600)) as app:
        gr.Markdown(f"# llm-asr\nSpeech recognition with a `{config.projector_type}` projector.")
        with gr.Tab("Recording"):
            with gr.Row():
                with gr.Column():
                    audio = gr.Audio(sources=["upload", "microphone"], type="filepath", label="Recording")
                    language = gr.Dropdown(languages, value=LET_THE_MODEL_NAME_IT, label="Language")
                    context = gr.Textbox(label="Context", placeholder="Names, the subject (optional)")
                    button = gr.Button("Transcribe", variant="primary")
                with gr.Column():
                    text = gr.Textbox(label="Transcript", lines=4, buttons=["copy"], elem_id="transcript")
                    spoken = gr.Textbox(label="Language of the recording", elem_id="spoken-language")
                    shares = gr.Label(
                        label="Share of the recording that each expert processes",
                        num_top_classes=config.num_experts,
                        show_heading=False,
                        visible=config.uses_experts,
                        elem_id="experts",
                    )
            plot = gr.Plot(show_label=False, elem_id="plot")
            times = gr.Dataframe(
                headers=["start (s)", "end (s)", "word" if config.uses_cif else "segment"],
                label="Times",
                interactive=False,
                elem_id="times",
            )
            button.click(
                lambda *inputs: transcribe(transcriber, *inputs),
                inputs=[audio, language, context],
                outputs=[text, spoken, plot, times, shares],
                api_name="transcribe",
            )
        with gr.Tab("Live"):
            add_live_tab(transcriber, languages)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder or Hub id of a checkpoint.")
    parser.add_argument("--device", default="auto", help="Device: auto, cpu, cuda, cuda:1, mps, ...")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="Dtype of the weights; by default the saved one."
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="Run code from the checkpoint.")
    parser.add_argument(
        "--host", default="127.0.0.1", help="Address to listen on; by default only this machine can connect."
    )
    parser.add_argument("--port", type=int, help="Port to listen on; by default the first free one from 7860.")
    parser.add_argument(
        "--share", action="store_true", help="Also serve on a public address, through Gradio's servers."
    )
    args = parser.parse_args()
    try:
        transcriber = load_transcriber(args)
    except UsageError as error:
        parser.error(str(error))
    build_app(transcriber).launch(
        server_name=args.host, server_port=args.port, share=args.share, max_file_size="200mb"
    )


if __name__ == "__main__":
    main()
