# A small image for CPUs: docker build -t darkroom . && docker run --rm -v "$PWD/out:/out" darkroom generate "a large fox on a yellow background" -o /out
FROM python:3.12-slim
COPY . /src
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu /src && rm -rf /src
RUN useradd --create-home darkroom
USER darkroom
WORKDIR /home/darkroom
ENTRYPOINT ["darkroom"]
CMD ["--help"]
