/** A button that opens a picture's file. */
export function FilePick({ label, take }: { label: string; take: (file: Blob) => void }) {
  return (
    <label class="filepick">
      {label}
      <input
        type="file"
        accept="image/png,image/jpeg,image/webp"
        onChange={(event) => {
          const file = event.currentTarget.files?.[0]
          event.currentTarget.value = '' // so that the same file can be chosen again
          if (file) take(file)
        }}
      />
    </label>
  )
}
