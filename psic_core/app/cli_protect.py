"""``psic protect``: a photo's file, the picture to post, and what a reader believes of each version, in one go."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from psic_core.app.cli_files import DEFAULT_CHECKPOINT
from psic_core.app.words import private


@dataclass(frozen=True)
class Protect:
    """Write the .psic file and the protected picture of each photo, and say what a reader believes of it."""

    photos: Positional[tuple[Path, ...]]
    output: Annotated[Path, arg(aliases=["-o"])] = Path()  # a folder, made where missing
    keyword: str = ""  # words that will decode the full version; others see them here: - asks; or PSIC_KEYWORD
    # a shield searched for the photo, eight seconds each: in the file, or in the picture, which only the keyword takes
    # out again; none: the model's trained triggers alone, which mislead less and are seen more
    adapt: Literal["carried", "sealed", "none"] = "carried"
    checkpoint: str = DEFAULT_CHECKPOINT  # file or shipped name
    reader: str = "lite-clip"  # the model that says what it sees
    names: Path | None = None  # a text file of what may be there, a name a line; None: ImageNet's 1,000 classes
    suffix: Literal[".jpg", ".png"] = ".jpg"  # of the picture to post
    overwrite: bool = False  # replace files that are there

    def run(self) -> None:
        """Protect each photo."""
        from open_clip import IMAGENET_CLASSNAMES

        from psic_core.app.folder_jobs import Job, Work, checked, load, make
        from psic_core.bitstream import unpack
        from psic_core.models.images import load_image, to_pil, to_tensor
        from psic_core.models.vlp import load_target

        keyword = private(self.keyword, "keyword", "PSIC_KEYWORD", twice=True)
        work = Work("encode", self.checkpoint, keyword, adapt=None if self.adapt == "none" else self.adapt)
        jobs = [Job(photo, self.output / f"{photo.stem}.psic") for photo in self.photos]
        shown = [Job(job.output, self.output / f"{job.source.stem}-protected{self.suffix}") for job in jobs]
        for job, picture in zip(jobs, shown, strict=True):
            checked(job, self.overwrite)
            checked(Job(job.source, picture.output), self.overwrite)
        if len({job.output for job in jobs}) < len(jobs):
            raise ValueError("two photos have one name but for their suffix; protect them one by one, into two folders")
        names = self.names.read_text("utf-8").splitlines() if self.names else IMAGENET_CLASSNAMES
        names = [name.strip() for name in names if name.strip()]
        self.output.mkdir(parents=True, exist_ok=True)
        model, reader = load(work), load_target(self.reader)
        prompts = reader.encode_text([f"a photo of a {name}" for name in names])
        for job, picture in zip(jobs, shown, strict=True):
            make(job, work, model)
            make(picture, Work("decode", self.checkpoint), model)
            print(f"{job.source}: {job.output}, {job.output.stat().st_size} bytes; {picture.output} to post")
            file = job.output.read_bytes()
            stream = unpack(file)
            if keyword:
                full = model.decompress(file, keyword)
            else:  # what nobody has of a sealed file; of another, its owner
                full = to_pil(model.picture(model.latents(stream), stream.size, model.full_condition()))
            versions = {"original": load_image(job.source), "full": full, "protected": load_image(picture.output)}
            for version, image in versions.items():
                belief = reader.probabilities(reader.encode_images(to_tensor(image)), prompts)[0]
                print(f"  {version:10} {names[int(belief.argmax())]}, {100 * float(belief.max()):.0f} %")
