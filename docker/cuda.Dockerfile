# Serves a checkpoint on GPUs with vLLM:
#   docker build -f docker/cuda.Dockerfile -t llm-asr:cuda .
#   docker run --gpus all --ipc host -p 8000:8000 -v "$PWD/runs/mine:/model:ro" llm-asr:cuda
FROM vllm/vllm-openai:v0.32.0
WORKDIR /src
COPY . .
# llm-asr requires a newer Transformers than vLLM. vLLM works with it.
# `.` is this checkout, which has no version to pin.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[serve]" && useradd --create-home --uid 1000 asr
# By number, so that Kubernetes can tell that this is not root.
USER 1000
WORKDIR /home/asr
EXPOSE 8000
HEALTHCHECK --start-period=300s CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["llm-asr", "serve", "--host", "0.0.0.0"]
CMD ["/model"]
