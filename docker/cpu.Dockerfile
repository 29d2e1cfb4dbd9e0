# Serves a checkpoint on a CPU:
#   docker build -f docker/cpu.Dockerfile -t llm-asr:cpu .
#   docker run -p 8000:8000 -v "$PWD/runs/mine:/model:ro" llm-asr:cpu
FROM python:3.11-slim
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY . .
# `.` is this checkout, which has no version to pin.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir "torch>=2.10,<2.14" --index-url "$TORCH_INDEX_URL" \
    && pip install --no-cache-dir ".[serve]" \
    && useradd --create-home --uid 1000 asr
# By number, so that Kubernetes can tell that this is not root.
USER 1000
WORKDIR /home/asr
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["llm-asr", "serve", "--host", "0.0.0.0", "--engine", "transformers"]
CMD ["/model"]
