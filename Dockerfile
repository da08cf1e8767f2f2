# A small image for CPUs.
#   docker build -t darkroom .
#   docker run --rm -p 7860:7860 -v darkroom:/data darkroom            # serves; prints the key that its page asks for
#   docker run --rm -v "$PWD:/data" -u "$(id -u):$(id -g)" darkroom generate "a large fox on a yellow background"
FROM python:3.12-slim
COPY . /src
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu "/src[serve]" && rm -rf /src
RUN useradd --create-home darkroom && install -d -o darkroom /data
USER darkroom
WORKDIR /data
VOLUME /data
EXPOSE 7860
ENTRYPOINT ["darkroom"]
CMD ["serve", "--host", "0.0.0.0", "--data", "/data"]
